//! The session as a table of inputs and a table of outputs, in wire JSON where there is a wire form.

mod closing;
mod connect;
mod expiry;
mod harness;
mod lifecycle;
mod operations;
mod property;
mod proxied;
mod quota;
mod resume;
mod server;
mod size;
mod subscribe;
