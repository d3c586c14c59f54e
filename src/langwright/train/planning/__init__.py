"""What a run will take, told before it begins: memory, arithmetic, tokens, time, money."""
