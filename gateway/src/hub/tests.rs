//! The hub against a recording port, the registry and the inbox against each other.

mod bench;
mod checking;
mod inbox;
mod joining;
mod membership;
mod recovering;
mod registry;
mod repairing;
mod sharing;
