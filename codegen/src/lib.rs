//! Code generation: a Program in, an executable out.
