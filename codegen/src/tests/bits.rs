//! KIR interpreter = LLVM, bit for bit.
