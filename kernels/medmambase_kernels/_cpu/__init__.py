"""Vector code for a processor, compiled by LLVM, one file an operator. ``import llvmlite`` stands
in this folder alone."""
