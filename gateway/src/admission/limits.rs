//! Bounds of the node on single addresses and users.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use backplane::UserId;
use parking_lot::Mutex;

use super::AdmissionSettings;
use crate::transport::network::one_client;

/// Stripes of the maps of a node: enough that shards rarely meet.
const STRIPES: usize = 16;

/// Addresses of a stripe from which on those are looked for that can be forgotten.
const SWEEP_FROM: usize = 1024;

/// A map in stripes, each with its own lock.
struct Striped<K, V> {
    stripes: [Mutex<Stripe<K, V>>; STRIPES],
    hasher: RandomState,
}

struct Stripe<K, V> {
    entries: HashMap<K, V>,
    sweep_at: usize,
}

impl<K: Hash + Eq, V> Striped<K, V> {
    fn new() -> Self {
        let stripe = |_| Mutex::new(Stripe { entries: HashMap::new(), sweep_at: SWEEP_FROM });
        Self { stripes: std::array::from_fn(stripe), hasher: RandomState::new() }
    }

    fn stripe(&self, key: &K) -> &Mutex<Stripe<K, V>> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

impl<K: Hash + Eq, V> Stripe<K, V> {
    /// Gives back what a storm has left.
    fn shrink(&mut self) {
        if self.entries.capacity() > SWEEP_FROM && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

/// Why an address is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressRefusal {
    /// It has as many connections as one may have.
    Connections,
    /// It asks too often.
    Rate,
}

#[derive(Debug, Default)]
struct OfAddress {
    connections: u32,
    /// When its requests so far will have been earned, since the start (the generic cell rate algorithm).
    earned_at: Duration,
}

/// Connections and upgrade requests of each address on this node. Loopback is never counted: behind a proxy on the same
/// machine that is not trusted yet, everybody is one address.
pub struct AddressLimits {
    connections_max: u32,
    rate: u32,
    addresses: Striped<IpAddr, OfAddress>,
}

impl AddressLimits {
    /// By these settings.
    pub fn new(settings: &AdmissionSettings) -> Arc<Self> {
        Arc::new(Self {
            connections_max: settings.connections_per_address,
            rate: settings.rate_per_address,
            addresses: Striped::new(),
        })
    }

    /// Lets one more connection of an address in, so long after the start; `None` when addresses are not counted.
    ///
    /// # Errors
    /// When the address has too many already, or asks too often. A request that is refused counts for nothing.
    pub fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        since_start: Duration,
    ) -> Result<Option<AddressSlot>, AddressRefusal> {
        if (self.connections_max == 0 && self.rate == 0) || address.to_canonical().is_loopback() {
            return Ok(None);
        }
        let address = one_client(address);
        let mut stripe = self.addresses.stripe(&address).lock();
        if stripe.entries.len() >= stripe.sweep_at {
            stripe.entries.retain(|_, entry| entry.connections > 0 || entry.earned_at > since_start);
            stripe.sweep_at = SWEEP_FROM.max(stripe.entries.len() * 2);
        }
        let entry = stripe.entries.entry(address).or_default();
        if self.connections_max > 0 && entry.connections >= self.connections_max {
            return Err(AddressRefusal::Connections);
        }
        if self.rate > 0 {
            // A second's worth may come at once.
            let earned_at = entry.earned_at.max(since_start) + Duration::from_secs(1) / self.rate;
            if earned_at > since_start + Duration::from_secs(1) {
                return Err(AddressRefusal::Rate);
            }
            entry.earned_at = earned_at;
        }
        entry.connections += 1;
        drop(stripe);
        Ok(Some(AddressSlot { limits: self.clone(), address }))
    }

    fn leave(&self, address: &IpAddr) {
        let mut stripe = self.addresses.stripe(address).lock();
        let Some(entry) = stripe.entries.get_mut(address) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 && self.rate == 0 {
            stripe.entries.remove(address);
            stripe.shrink();
        }
    }
}

/// One connection in the count of its address, until it is dropped.
pub struct AddressSlot {
    limits: Arc<AddressLimits>,
    address: IpAddr,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        self.limits.leave(&self.address);
    }
}

/// Connections of each user on this node. The anonymous user is nobody in particular and not counted.
pub struct UserLimits {
    connections_max: usize,
    users: Striped<UserId, usize>,
}

impl UserLimits {
    /// So many for each; 0 is no bound.
    pub fn new(connections_max: usize) -> Self {
        Self { connections_max, users: Striped::new() }
    }

    /// Counts one more connection of a user; false, and nothing is counted, when there are too many. Each that was let in
    /// has to [`UserLimits::leave`].
    #[must_use]
    pub fn enter(&self, user: &UserId) -> bool {
        if self.connections_max == 0 || user.is_anonymous() {
            return true;
        }
        let mut stripe = self.users.stripe(user).lock();
        if let Some(count) = stripe.entries.get_mut(user) {
            let has_room = *count < self.connections_max;
            *count += usize::from(has_room);
            return has_room;
        }
        stripe.entries.insert(user.clone(), 1);
        true
    }

    /// A connection that was let in is gone.
    pub fn leave(&self, user: &UserId) {
        if self.connections_max == 0 || user.is_anonymous() {
            return;
        }
        let mut stripe = self.users.stripe(user).lock();
        let Some(count) = stripe.entries.get_mut(user) else { return };
        *count -= 1;
        if *count == 0 {
            stripe.entries.remove(user);
            stripe.shrink();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_address_has_so_many_connections_and_asks_so_often() {
        let settings =
            AdmissionSettings { connections_per_address: 2, rate_per_address: 4, ..AdmissionSettings::default() };
        let limits = AddressLimits::new(&settings);
        let admit = |text: &str, at: u64| limits.admit(text.parse().unwrap(), millis(at)).map(|slot| slot.is_some());
        let one = limits.admit("192.0.2.1".parse().unwrap(), millis(0)).unwrap();
        let two = limits.admit("::ffff:192.0.2.1".parse().unwrap(), millis(0)).unwrap();
        assert_eq!(admit("192.0.2.1", 0), Err(AddressRefusal::Connections));
        drop(one);
        assert_eq!(admit("192.0.2.1", 0), Ok(true));
        assert_eq!(admit("192.0.2.1", 0), Ok(true));
        assert_eq!(admit("192.0.2.1", 0), Err(AddressRefusal::Rate), "four of this second are used up");
        assert_eq!(admit("192.0.2.1", 249), Err(AddressRefusal::Rate));
        assert_eq!(admit("192.0.2.1", 250), Ok(true), "a quarter of a second earns one");
        assert_eq!(admit("192.0.2.2", 0), Ok(true), "another address");
        for _ in 0..100 {
            assert_eq!(admit("127.0.0.1", 0), Ok(false));
            assert_eq!(admit("::1", 0), Ok(false));
        }
        drop(two);
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let settings = AdmissionSettings { rate_per_address: 1, ..AdmissionSettings::default() };
        let limits = AddressLimits::new(&settings);
        for second in 0..100_u64 {
            for n in 0..1_000_u32 {
                let address = IpAddr::from((0x0b00_0000 + second as u32 * 1_000 + n).to_be_bytes());
                limits.admit(address, millis(second * 1_000)).unwrap();
            }
        }
        let kept: usize = limits.addresses.stripes.iter().map(|stripe| stripe.lock().entries.len()).sum();
        assert!(kept <= STRIPES * SWEEP_FROM * 2, "{kept}");
    }

    #[test]
    fn a_user_has_so_many_connections() {
        let limits = UserLimits::new(2);
        let (ann, nobody) = (UserId::from("ann"), UserId::from(""));
        assert!(limits.enter(&ann) && limits.enter(&ann));
        assert!(!limits.enter(&ann));
        assert!(limits.enter(&UserId::from("bob")));
        limits.leave(&ann);
        assert!(limits.enter(&ann));
        assert!((0..10).all(|_| limits.enter(&nobody)), "the anonymous user is many people");
        assert!((0..10).all(|_| UserLimits::new(0).enter(&ann)));
    }
}
