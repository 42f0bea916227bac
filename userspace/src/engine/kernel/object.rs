//! The eBPF objects that the build step made.

/// The packet path's, the load balancer's and the switch's, in this order.
static OBJECTS: [Result<&[u8], &str>; 3] = include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// The packet path's object file, aligned as an ELF reader needs it; or why there is none, in full: what lacks of the
/// toolchain, what was looked for, the commands that bring it. See `userspace/build.rs`.
pub static OBJECT: Result<&[u8], &str> = OBJECTS[0];
/// As [`OBJECT`], the load balancer's.
pub static BALANCER: Result<&[u8], &str> = OBJECTS[1];
/// As [`OBJECT`], the switch's.
pub static SWITCH: Result<&[u8], &str> = OBJECTS[2];
