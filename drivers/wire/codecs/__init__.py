"""Values to words and back: CiA 402 drives, grants and results, integers in Modbus registers. Pure functions, no I/O."""
