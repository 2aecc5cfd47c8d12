//! What can be run. Each scenario has its options, its run and its result.

pub mod compare;
pub mod connect;
pub mod fanout;
pub mod follow;
pub mod limit;
pub mod options;
pub mod process;
