"""The small native core: a whole decode step of a quantised decoder in one call, in C++ behind a plain C interface."""
