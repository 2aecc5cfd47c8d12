//! The in-memory backplane passes the conformance suite, alone and behind the wrappers that tests put around it.

mod support;

use backplane::conformance::{run_all, run_all_stores};
use backplane::fault::{FaultyBackplane, Network, NodeLink};
use backplane::memory::MemoryBackplane;

use support::{Wrapped, memory, ready_at_once};

backplane::conformance_tests!(memory(), ready_at_once);
backplane::lingering_conformance_tests!(memory(), ready_at_once);
backplane::store_conformance_tests!(memory(), ready_at_once);

#[test]
fn the_whole_suite_runs_in_one_go() {
    ready_at_once(run_all(&memory())).expect("every case passes");
    ready_at_once(run_all_stores(&memory())).expect("every case passes");
}

#[test]
fn a_faulty_backplane_without_orders_passes() {
    let factory =
        Wrapped::new(FaultyBackplane::new, |backplane: &FaultyBackplane<MemoryBackplane>| backplane.inner().forget());
    ready_at_once(run_all(&factory)).expect("every case passes");
}

#[test]
fn a_node_of_a_network_passes() {
    // The network lives in its links; the forgetting goes through one more of them.
    let networks = std::sync::Mutex::new(Vec::new());
    let factory = Wrapped::new(
        |backplane| {
            let network = Network::new(backplane);
            let link = network.link();
            networks.lock().expect("no test panics while it holds this").push(network);
            link
        },
        |_: &NodeLink| {
            for network in networks.lock().expect("no test panics while it holds this").iter() {
                network.backplane().forget();
            }
        },
    );
    ready_at_once(run_all(&factory)).expect("every case passes");
}
