// Half precision (IEEE 754 binary16) to single, exactly, without the processor's help.
#pragma once
#include <cstdint>
#include <cstring>

namespace lw {

inline float half(const uint8_t* at) {
    uint16_t h;
    std::memcpy(&h, at, 2);
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, rest = h & 1023;
    if (exponent == 0) {  // zero and what is too small for an exponent: rest * 2^-24
        const float small = (float)rest * 5.9604644775390625e-8f;
        return sign ? -small : small;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | rest << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace lw
