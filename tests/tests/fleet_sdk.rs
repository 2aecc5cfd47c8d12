//! The SDK scenarios of one gateway hold for a fleet, too: clients are on one node, the server API is called on another.

use tests::fleet::Fleet;
use tests::script::{Target, node, python};
use tests::store::Kind;

tests::on_every_store! {
    javascript_clients_of_one_node_and_the_api_of_another
    the_python_api_sdk_sees_one_system_on_whichever_node_it_asks
}

async fn javascript_clients_of_one_node_and_the_api_of_another(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 2).await;
    node(Target { clients: &fleet[0], api: &fleet[1], nodes: 2 }, &["run-node.js", "json"]);
}

async fn the_python_api_sdk_sees_one_system_on_whichever_node_it_asks(kind: Kind) {
    let store = kind.volatile();
    let fleet = Fleet::start(&store.config(""), 3).await;
    for (clients, api) in [(0, 1), (2, 0), (1, 1)] {
        python(Target { clients: &fleet[clients], api: &fleet[api], nodes: 3 }, &["run.py", "api"]);
    }
}
