//! The eBPF object that the build step made.

/// The object file's bytes, aligned as an ELF reader needs them; or why there are none, in full: what lacks of the
/// toolchain, what was looked for, the commands that bring it. See `userspace/build.rs`.
pub static OBJECT: Result<&[u8], &str> = include!(concat!(env!("OUT_DIR"), "/object.rs"));
