//! The `gateway` binary: read the configuration, serve until told to stop, drain.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gateway::serve::run(std::env::args_os(), std::env::vars().collect())
}
