"""The C++ sources of the CPU kernel, their compilation, and what came of it."""
