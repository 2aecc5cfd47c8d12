//! Whether clients that were told to go, in order to move them, come back to this node. Where most do, something in front
//! binds clients to nodes, and moving them is of no use.
//!
//! A client is known again by its session, or by its user and address. One that cannot be told from others is not judged:
//! when two that look alike are told to go within [`SETTLED_AFTER`], or two that look alike arrive, it stays open which of
//! them came back.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backplane::UserId;
use parking_lot::Mutex;

/// A client that is not back after this time has gone elsewhere: up to 2 s for what it has asked, and the SDKs' first
/// attempts.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// The most clients whose return is waited for, with some 50 bytes each. More are moved within that time only by a node that
/// closes over 1,600 a second; their fate is not looked at.
const WAITING_MAX: usize = 16_384;

/// A client, as far as it can be told from others.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// Its user; empty for an anonymous one.
    pub user: &'a UserId,
    /// The id of its session, if it has asked for one.
    pub session: Option<&'a str>,
    /// Its address, as [`Returns::address`] shortens it.
    pub address: u32,
}

/// How many clients that were told to go have settled, ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// It is known of them whether they came back.
    pub settled: u64,
    /// Those of them that did.
    pub returned: u64,
}

/// Waits for clients that were told to go. Shared by all shards.
#[derive(Debug, Default)]
pub struct Returns {
    hasher: RandomState,
    /// As many as the ledger waits for: nearly always none, and then nobody has to ask.
    waiting: AtomicUsize,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    clients: HashMap<u64, Told>,
    /// When each of them settles, in ascending order.
    due: VecDeque<(Duration, u64)>,
    total: Settled,
}

/// A client that was told to go.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// When it settles.
    due: Duration,
    is_back: bool,
    /// It cannot be told from another one.
    is_unclear: bool,
}

impl Returns {
    /// An address in four bytes, for as long as this process runs. That two addresses become one happens, but not to many.
    pub fn address(&self, address: IpAddr) -> u32 {
        self.hasher.hash_one(address.to_canonical()) as u32
    }

    /// A client was told to go, in order to move it, so long after the start. `is_back`: its connection is one with which it
    /// had come back, by the word of [`arrived`](Self::arrived).
    pub fn told_to_go(&self, uptime: Duration, who: Who<'_>, is_back: bool) {
        let key = self.key(who);
        let mut ledger = self.ledger.lock();
        ledger.settle(uptime);
        let has_place = ledger.clients.len() < WAITING_MAX;
        match ledger.clients.get_mut(&key) {
            // It goes again before it was settled.
            Some(told) if is_back && told.is_back && !told.is_unclear => {
                ledger.count(true);
                ledger.expect(uptime, key);
            }
            Some(told) => told.is_unclear = true,
            None if has_place => ledger.expect(uptime, key),
            None => {}
        }
        self.waiting.store(ledger.clients.len(), Ordering::Relaxed);
    }

    /// Whether any client is waited for.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// A client has connected; whether it is one that was told to go.
    pub fn arrived(&self, uptime: Duration, who: Who<'_>) -> bool {
        let key = self.key(who);
        let mut ledger = self.ledger.lock();
        ledger.settle(uptime);
        let Some(told) = ledger.clients.get_mut(&key) else { return false };
        told.is_unclear |= told.is_back;
        told.is_back = true;
        true
    }

    /// What is known by now.
    pub fn settled(&self, uptime: Duration) -> Settled {
        let mut ledger = self.ledger.lock();
        ledger.settle(uptime);
        self.waiting.store(ledger.clients.len(), Ordering::Relaxed);
        ledger.total
    }

    fn key(&self, who: Who<'_>) -> u64 {
        let user = who.user.as_str();
        match who.session {
            Some(session) => self.hasher.hash_one((user, session)),
            None => self.hasher.hash_one((user, who.address)),
        }
    }
}

impl Ledger {
    fn expect(&mut self, uptime: Duration, key: u64) {
        let due = uptime + SETTLED_AFTER;
        self.clients.insert(key, Told { due, is_back: false, is_unclear: false });
        self.due.push_back((due, key));
    }

    fn count(&mut self, is_back: bool) {
        self.total.settled += 1;
        self.total.returned += u64::from(is_back);
    }

    fn settle(&mut self, uptime: Duration) {
        while let Some((due, key)) = self.due.front().copied().filter(|(due, _)| *due <= uptime) {
            self.due.pop_front();
            // It may have been told to go again since.
            let Some(told) = self.clients.get(&key).copied().filter(|told| told.due == due) else { continue };
            self.clients.remove(&key);
            if !told.is_unclear {
                self.count(told.is_back);
            }
        }
        if self.clients.is_empty() {
            self.clients = HashMap::new();
            self.due = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counts(returns: &Returns, uptime: u64) -> (u64, u64) {
        let Settled { settled, returned } = returns.settled(seconds(uptime));
        (settled, returned)
    }

    #[test]
    fn who_comes_back_in_time_is_counted() {
        let returns = Returns::default();
        let users = ["a", "b", "c"].map(UserId::from);
        let [a, b, c] = users.each_ref().map(|user| Who { user, session: None, address: 7 });
        assert!(!returns.is_waiting());
        [a, b, c].iter().for_each(|who| returns.told_to_go(seconds(100), *who, false));
        assert!(returns.is_waiting());
        returns.arrived(seconds(101), a);
        assert_eq!(counts(&returns, 109), (0, 0), "the others may come yet");
        assert_eq!(counts(&returns, 110), (3, 1));
        assert!(!returns.is_waiting());
        returns.arrived(seconds(111), b);
        assert_eq!(counts(&returns, 200), (3, 1), "too late");
    }

    #[test]
    fn a_client_is_known_by_its_session_or_its_user_and_address() {
        let returns = Returns::default();
        let (user, other) = (UserId::from("u"), UserId::from("v"));
        let address = |text: &str| returns.address(text.parse().expect("an address"));
        let (here, there) = (address("192.0.2.1"), address("192.0.2.2"));
        assert_eq!(address("::ffff:192.0.2.1"), here);
        let plain = Who { user: &user, session: None, address: here };
        let resumable = Who { session: Some("s-1"), ..plain };
        let came_back = |uptime, told, arrived| {
            let before = returns.settled(seconds(uptime)).returned;
            returns.told_to_go(seconds(uptime), told, false);
            returns.arrived(seconds(uptime), arrived);
            returns.settled(seconds(uptime) + SETTLED_AFTER).returned > before
        };
        assert!(came_back(0, plain, plain));
        assert!(!came_back(20, plain, Who { address: there, ..plain }));
        assert!(!came_back(40, plain, Who { user: &other, ..plain }));
        assert!(came_back(60, resumable, Who { address: there, ..resumable }), "a phone has another address by now");
        assert!(!came_back(80, resumable, plain));
        assert!(!came_back(100, resumable, Who { session: Some("s-2"), ..resumable }));
    }

    #[test]
    fn clients_that_look_alike_are_not_judged() {
        let nobody = UserId::from("");
        let who = Who { user: &nobody, session: None, address: 7 };
        let returns = Returns::default();
        returns.told_to_go(seconds(0), who, false);
        returns.told_to_go(seconds(1), who, false);
        returns.arrived(seconds(2), who);
        assert_eq!(counts(&returns, 20), (0, 0), "which of the two?");
        returns.told_to_go(seconds(20), who, false);
        returns.arrived(seconds(21), who);
        returns.arrived(seconds(22), who);
        assert_eq!(counts(&returns, 40), (0, 0), "one of them is another");
    }

    #[test]
    fn a_client_that_goes_again_has_come_back() {
        let user = UserId::from("u");
        let who = Who { user: &user, session: None, address: 7 };
        let returns = Returns::default();
        let mut is_back = false;
        for uptime in 0..5 {
            returns.told_to_go(seconds(uptime), who, is_back);
            is_back = returns.arrived(seconds(uptime), who);
            assert!(is_back);
        }
        assert_eq!(counts(&returns, 13), (4, 4));
        assert_eq!(counts(&returns, 14), (5, 5));
    }

    #[test]
    fn no_more_are_waited_for_than_there_is_place() {
        let returns = Returns::default();
        for number in 0..2 * WAITING_MAX {
            let user = UserId::from(number.to_string());
            returns.told_to_go(seconds(0), Who { user: &user, session: None, address: 0 }, false);
        }
        assert_eq!(counts(&returns, 10), (WAITING_MAX as u64, 0));
    }
}
