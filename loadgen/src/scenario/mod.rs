//! What can be run. Each scenario has its options, its run and its result.
//!
//! [`connect`], [`fanout`], [`limit`] and [`compare`] measure servers that nothing happens to. [`storm`], [`rolling`],
//! [`outage`], [`resume`] and [`scaleout`] break or change things: [`population`] is who is connected, [`fleet`] the nodes,
//! [`control`], [`health`], [`cluster`] and [`census`] how they are ended and asked, [`course`] what such runs have in common.

pub mod census;
pub mod cluster;
pub mod compare;
pub mod connect;
pub mod control;
pub mod course;
pub mod fanout;
pub mod fleet;
pub mod follow;
pub mod health;
pub mod limit;
pub mod options;
pub mod outage;
pub mod population;
pub mod process;
pub mod resume;
pub mod rolling;
pub mod scaleout;
pub mod storm;
