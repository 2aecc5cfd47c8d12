//! Which server is the primary of what, and how that is learnt from what servers and Sentinels say.

use std::collections::HashMap;

use fred::types::Value;

use super::config::Address;
use super::connection::{list, text, unexpected};
use crate::BackplaneError;

/// Hash slots of a Redis Cluster. Other topologies are treated as one server with all of them.
pub(super) const SLOTS: u16 = 16384;

/// A server that takes writes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Primary {
    pub(super) address: Address,
    /// Grows with every promotion of the server and every slot it is given (the configuration epoch): with it, a server
    /// that was something else in between is told from one that was not.
    pub(super) term: u64,
}

/// The primaries at some moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Each owns a slot at least. Ordered by address.
    pub(super) primaries: Vec<Primary>,
    /// First slot, last slot, index of the owner; ascending, slots without an owner left out.
    ranges: Vec<(u16, u16, usize)>,
}

/// The slot of a key or a pub/sub name.
pub(super) fn slot_of(name: &str) -> u16 {
    fred::util::redis_keyslot(name.as_bytes())
}

impl Layout {
    /// One server for everything.
    pub(super) fn single(address: Address, term: u64) -> Self {
        Self { primaries: vec![Primary { address, term }], ranges: vec![(0, SLOTS - 1, 0)] }
    }

    /// The index of the primary that owns a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<usize> {
        let after = self.ranges.partition_point(|&(first, ..)| first <= slot);
        let &(_, last, owner) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= last).then_some(owner)
    }

    /// The same, but slots without an owner stay with whom they were. So nobody is forgotten while a cluster is in parts.
    pub(super) fn or_as_before(self, before: &Self) -> Self {
        let owned: usize = self.ranges.iter().map(|&(first, last, _)| usize::from(last - first) + 1).sum();
        if owned == usize::from(SLOTS) {
            return self;
        }
        let owner = |layout: &Self, slot| layout.owner(slot).map(|owner| layout.primaries[owner].clone());
        Self::of_owners((0..SLOTS).map(|slot| owner(&self, slot).or_else(|| owner(before, slot))).collect())
    }

    fn of_owners(owners: Vec<Option<Primary>>) -> Self {
        let mut primaries: Vec<Primary> = owners.iter().flatten().cloned().collect();
        primaries.sort_by(|a, b| (&a.address.host, a.address.port).cmp(&(&b.address.host, b.address.port)));
        primaries.dedup();
        let index: HashMap<&Primary, usize> = primaries.iter().enumerate().map(|(n, primary)| (primary, n)).collect();
        let mut ranges: Vec<(u16, u16, usize)> = Vec::new();
        for (slot, owner) in (0..SLOTS).zip(&owners) {
            let Some(&owner) = owner.as_ref().and_then(|owner| index.get(owner)) else { continue };
            match ranges.last_mut() {
                Some((_, last, same)) if *same == owner && *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot, owner)),
            }
        }
        Self { primaries, ranges }
    }
}

/// What one node of a cluster says of one node, itself included.
struct Claim {
    address: Address,
    epoch: u64,
    is_myself: bool,
    is_primary: bool,
    slots: Vec<(u16, u16)>,
}

/// The layout of a cluster from the answers of some of its nodes to CLUSTER NODES. They may be of different age: for
/// each slot the claim with the highest configuration epoch counts, as among the nodes themselves.
pub(super) fn of_cluster(answers: &[(Address, String)], prefers_host_names: bool) -> Layout {
    let mut owners: Vec<Option<(u64, &str)>> = vec![None; usize::from(SLOTS)];
    let mut nodes: HashMap<&str, Claim> = HashMap::new();
    for (asked, answer) in answers {
        for line in answer.lines() {
            let Some((id, claim)) = claim(line, asked, prefers_host_names) else { continue };
            if claim.is_primary {
                for slot in claim.slots.iter().flat_map(|&(first, last)| first..=last) {
                    let owner = &mut owners[usize::from(slot)];
                    if owner.is_none_or(|(epoch, _)| epoch < claim.epoch) {
                        *owner = Some((claim.epoch, id));
                    }
                }
            }
            let is_newer = |known: &Claim| (known.epoch, known.is_myself) < (claim.epoch, claim.is_myself);
            if nodes.get(id).is_none_or(is_newer) {
                nodes.insert(id, claim);
            }
        }
    }
    let primary = |id: &str| {
        let node = nodes.get(id).filter(|node| node.is_primary)?;
        Some(Primary { address: node.address.clone(), term: node.epoch })
    };
    Layout::of_owners(owners.into_iter().map(|owner| owner.and_then(|(_, id)| primary(id))).collect())
}

/// `<id> <ip:port@bus port[,host name]> <flags> <primary> <ping> <pong> <epoch> <link state> <slot>...`
fn claim<'a>(line: &'a str, asked: &Address, prefers_host_names: bool) -> Option<(&'a str, Claim)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let &[id, place, flags, _, _, _, epoch, _, ref slots @ ..] = &fields[..] else { return None };
    let has = |flag: &str| flags.split(',').any(|found| found == flag);
    if has("noaddr") || has("handshake") {
        return None;
    }
    let (at, rest) = place.split_once('@')?;
    let (ip, port) = at.rsplit_once(':')?;
    let name = rest.split(',').nth(1).unwrap_or_default();
    let host = match () {
        () if prefers_host_names && !name.is_empty() => name,
        // A node that nobody has met yet does not know its own address.
        () if ip.is_empty() => &asked.host,
        () => ip,
    };
    let range = |text: &&str| {
        // What is in brackets is under way to another node or from it.
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        (last < SLOTS).then_some((first, last))
    };
    let claim = Claim {
        address: Address::new(host, port.parse().ok()?),
        epoch: epoch.parse().ok()?,
        is_myself: has("myself"),
        is_primary: has("master"),
        slots: slots.iter().filter_map(range).collect(),
    };
    Some((id, claim))
}

/// What a Sentinel says of a primary (SENTINEL MASTER), or of another Sentinel (one item of SENTINEL SENTINELS).
pub(super) fn of_sentinel(answer: Value) -> Result<Primary, BackplaneError> {
    let fields = fields(answer)?;
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let address = field("port").parse().ok().map(|port| Address::new(field("ip"), port));
    let address = address.filter(|address| !address.host.is_empty() && address.port != 0);
    // Other Sentinels have no configuration epoch.
    let term = field("config-epoch").parse().unwrap_or(0);
    let unknown = || BackplaneError::Protocol("a Sentinel does not say where the primary is".to_owned());
    address.map(|address| Primary { address, term }).ok_or_else(unknown)
}

fn fields(answer: Value) -> Result<HashMap<String, String>, BackplaneError> {
    match answer {
        Value::Map(map) => {
            let pairs = map.inner().into_iter();
            pairs.map(|(name, value)| Ok((name.as_str_lossy().into_owned(), text(value)?))).collect()
        }
        Value::Array(items) => {
            let texts = items.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
            Ok(texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
        }
        other => Err(unexpected(&other)),
    }
}

/// The Sentinels that a Sentinel knows besides itself.
pub(super) fn of_other_sentinels(answer: Value) -> Result<Vec<Address>, BackplaneError> {
    list(answer)?.into_iter().map(|item| of_sentinel(item).map(|other| other.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Address {
        Address::new("10.0.0.9", 7000)
    }

    fn layout(answers: &[&str]) -> Layout {
        let answers: Vec<_> = answers.iter().map(|answer| (seed(), (*answer).to_owned())).collect();
        of_cluster(&answers, false)
    }

    fn port(layout: &Layout, slot: u16) -> Option<u16> {
        layout.owner(slot).map(|owner| layout.primaries[owner].address.port)
    }

    #[test]
    fn slots_have_owners() {
        let layout = layout(&["a :7001@17001 myself,master - 0 0 1 connected 0-99 200 [300->-b]\n\
             b 10.0.0.2:7002@17002,node-b master - 0 0 2 connected 100-199 16383\n\
             c ::1:7003@17003 slave a 0 0 1 connected\n\
             d :0@0 master,noaddr - 0 0 9 disconnected 201\n\
             e 10.0.0.5:7005@17005 master,fail - 0 0 4 disconnected 202-203"]);
        let expected = [(0, 7001), (99, 7001), (100, 7002), (199, 7002), (200, 7001), (203, 7005), (16383, 7002)];
        for (slot, owner) in expected {
            assert_eq!(port(&layout, slot), Some(owner), "slot {slot}");
        }
        assert_eq!([port(&layout, 201), port(&layout, 300), port(&layout, 16382)], [None; 3]);
        let hosts: Vec<_> = layout.primaries.iter().map(|primary| primary.address.host.as_str()).collect();
        assert_eq!(hosts, ["10.0.0.2", "10.0.0.5", "10.0.0.9"]);
    }

    #[test]
    fn the_newest_claim_counts() {
        let old = "a 10.0.0.1:7001@17001 myself,master - 0 0 1 connected 0-16383\n\
             b 10.0.0.2:7002@17002 slave a 0 0 1 connected";
        let new = "b 10.0.0.2:7002@17002 myself,master - 0 0 3 connected 0-16383\n\
             a 10.0.0.1:7001@17001 master,fail - 0 0 1 disconnected";
        let demoted = "b 10.0.0.2:7002@17002 master - 0 0 3 connected 0-16383\n\
             a 10.0.0.1:7001@17001 myself,slave b 0 0 3 connected";
        for answers in [[old, new], [new, old], [old, demoted], [demoted, old]] {
            let layout = layout(&answers);
            assert_eq!(layout.primaries, [Primary { address: Address::new("10.0.0.2", 7002), term: 3 }]);
        }
        assert_eq!(port(&layout(&[old]), 5), Some(7001));
    }

    #[test]
    fn host_names_are_used_where_certificates_name_them() {
        let answer = "b 10.0.0.2:7002@17002,node-b,shard-id=1 myself,master - 0 0 2 connected 0";
        let answers = [(seed(), answer.to_owned())];
        assert_eq!(of_cluster(&answers, true).primaries[0].address, Address::new("node-b", 7002));
        assert_eq!(of_cluster(&answers, false).primaries[0].address, Address::new("10.0.0.2", 7002));
    }

    #[test]
    fn slots_without_an_owner_stay_where_they_were() {
        let before = layout(&[
            "a 10.0.0.1:7001@1 master - 0 0 1 connected 0-9\nb 10.0.0.2:7002@2 master - 0 0 2 connected 10-19",
        ]);
        let after = layout(&["a 10.0.0.1:7001@1 master - 0 0 3 connected 0-12"]);
        let merged = after.or_as_before(&before);
        let owners = [9, 12, 13, 19, 20].map(|slot| port(&merged, slot));
        assert_eq!(owners, [Some(7001), Some(7001), Some(7002), Some(7002), None]);
        assert_eq!(merged.clone().or_as_before(&before), merged);
    }

    #[test]
    fn nonsense_has_no_owners() {
        let layout =
            layout(&["", "a b c", "a x@1 master - 0 0 1 connected 0", "a h:1@1 master - 0 0 1 connected 9-99999"]);
        assert!(layout.primaries.is_empty(), "{layout:?}");
    }

    #[test]
    fn sentinels_are_understood() {
        let flat = ["name", "main", "ip", "10.0.0.1", "port", "6379", "config-epoch", "4"];
        let answer = Value::Array(flat.iter().map(|text| Value::from(*text)).collect());
        let primary = of_sentinel(answer).expect("an address");
        assert_eq!(primary, Primary { address: Address::new("10.0.0.1", 6379), term: 4 });
        of_sentinel(Value::Array(Vec::new())).expect_err("no address");
    }
}
