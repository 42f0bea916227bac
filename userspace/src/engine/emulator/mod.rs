//! Engine 2: the packet path in this process, with no privilege and no clock but its own.

pub mod frame;
pub mod host;
pub mod message;
pub mod node;
mod tables;

pub use frame::Frame;
pub use node::Emulator;
