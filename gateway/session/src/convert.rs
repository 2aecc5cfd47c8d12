//! From the backplane's types to the wire's.

use backplane::{ClientInfo, HistoryPage, PresenceStats, Publication, StoredPublication};

/// A client as other clients see it.
pub fn client_info(info: &ClientInfo) -> protocol::ClientInfo {
    protocol::ClientInfo {
        user: info.user.as_str().to_owned(),
        client: info.client.to_string(),
        conn_info: info.conn_info.clone(),
        chan_info: info.chan_info.clone(),
    }
}

/// A publication as subscribers get it. Payloads are shared, not copied.
pub fn publication(publication: &Publication) -> protocol::Publication {
    protocol::Publication {
        data: publication.data.clone(),
        info: publication.info.as_deref().map(client_info),
        offset: publication.offset.map_or(0, |offset| offset.0),
        tags: publication.tags.clone(),
        delta: false,
    }
}

/// A page of history.
pub fn history_result(page: &HistoryPage) -> protocol::HistoryResult {
    let stored = |stored: &StoredPublication| publication(&stored.publication);
    protocol::HistoryResult {
        publications: page.publications.iter().map(stored).collect(),
        epoch: page.top.epoch.as_str().to_owned(),
        offset: page.top.offset.0,
    }
}

/// The counts of a channel.
pub fn presence_stats_result(stats: PresenceStats) -> protocol::PresenceStatsResult {
    protocol::PresenceStatsResult { num_clients: stats.num_clients, num_users: stats.num_users }
}
