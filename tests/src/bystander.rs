//! The connection beside the one under test: whatever that one does, this one must notice nothing.

use serde_json::json;

use crate::client::Client;
use crate::gateway::Gateway;

/// A subscriber of a channel of its own.
pub struct Bystander {
    client: Client,
    published: u64,
}

/// The channel; its namespace keeps history, so that a lost publication would show.
const CHANNEL: &str = "chat:bystander";

impl Bystander {
    /// Connects and subscribes.
    pub async fn join(gateway: &Gateway) -> Self {
        let mut client = gateway.connect("bystander").await;
        client.subscribe(CHANNEL).await;
        Self { client, published: 0 }
    }

    /// Publishes into the bystander's channel: exactly that arrives there, next, and a command is answered.
    ///
    /// # Panics
    ///
    /// When anything else has happened to the bystander.
    pub async fn noticed_nothing(&mut self, gateway: &Gateway) {
        self.published += 1;
        gateway.api().publish(CHANNEL, json!({ "n": self.published })).await;
        let publication = self.client.publication(CHANNEL).await;
        assert_eq!(publication, json!({ "data": { "n": self.published }, "offset": self.published }));
        let stats = self.client.call(json!({ "presence_stats": { "channel": CHANNEL } })).await;
        assert_eq!(stats["presence_stats"], json!({ "num_clients": 1, "num_users": 1 }));
    }
}
