//! Executable host memory and the code in it. All `unsafe` of generated code lives here.
