//! Everything that depends on the processor architecture, behind one set of names.
//!
//! Another architecture is added as a sibling module that provides the same items: the register type with its
//! accessors, the interpreter's machine code, the system-call instruction, and the limits of user addresses.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("GridCPR runs on x86_64; add a module to crates/kernel/src/arch for this architecture");
