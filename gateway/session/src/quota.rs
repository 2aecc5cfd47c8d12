//! How many commands and how many published bytes one connection may send in a second.
//!
//! Each is one number (the generic cell rate algorithm): the moment at which everything sent so far will have been earned.
//! Twice a second's worth may come at once. What is beyond that is refused with error 111, which SDKs treat as temporary;
//! it still counts, so that whoever goes on regardless is closed with 3013 when the debt is twice as large.

use protocol::{Command, Request};

use crate::settings::Settings;
use crate::time::Tick;

/// How much may come at once, in microseconds of what is earned meanwhile.
const BURST: u64 = 2_000_000;

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verdict {
    /// It is carried out.
    Within,
    /// It is refused.
    Over,
    /// The connection has ignored refusals for too long.
    FarOver,
}

/// What a connection has used; made with its first command where anything is bounded.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    commands: Debt,
    publish_bytes: Debt,
}

/// When everything so far will have been earned, in microseconds.
#[derive(Debug, Default)]
struct Debt(u64);

impl Debt {
    fn charge(&mut self, now: Tick, cost: u64, per_second: u64) -> Verdict {
        if per_second == 0 || cost == 0 {
            return Verdict::Within;
        }
        let now = now.0.saturating_mul(1_000);
        let price = cost.saturating_mul(1_000_000) / per_second;
        self.0 = self.0.max(now).saturating_add(price.max(1));
        match self.0 - now {
            0..=BURST => Verdict::Within,
            debt if debt <= 2 * BURST => Verdict::Over,
            _ => Verdict::FarOver,
        }
    }
}

impl Quota {
    /// Whether settings bound anything.
    pub(crate) fn is_wanted(settings: &Settings) -> bool {
        settings.commands_per_second > 0 || settings.publish_bytes_per_second > 0
    }

    /// Counts a command. The end of a subscription is never refused: SDKs would reconnect.
    pub(crate) fn charge(&mut self, settings: &Settings, now: Tick, command: &Command) -> Verdict {
        let bytes = match &command.request {
            Some(Request::Unsubscribe(_)) => return Verdict::Within,
            Some(Request::Publish(request)) => request.data.len() as u64,
            Some(_) | None => 0,
        };
        let commands = self.commands.charge(now, 1, u64::from(settings.commands_per_second));
        commands.max(self.publish_bytes.charge(now, bytes, settings.publish_bytes_per_second as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_and_two_seconds_of_it_at_once_are_within() {
        let mut debt = Debt::default();
        let mut charge = |at: u64| debt.charge(Tick(at), 1, 10);
        for _ in 0..20 {
            assert_eq!(charge(5_000), Verdict::Within);
        }
        assert_eq!(charge(5_000), Verdict::Over);
        // What was refused has to be earned as well.
        assert_eq!(charge(5_100), Verdict::Over);
        assert_eq!(charge(5_300), Verdict::Within);
        for n in 1..100 {
            assert_eq!(charge(5_300 + n * 100), Verdict::Within, "{n}");
        }
        assert_eq!(charge(1 << 40), Verdict::Within);
    }

    #[test]
    fn a_debt_twice_as_large_is_too_much() {
        let mut debt = Debt::default();
        let verdicts: Vec<_> = (0..50).map(|_| debt.charge(Tick(0), 1, 10)).collect();
        assert!(verdicts.is_sorted());
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Within).count(), 20);
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Over).count(), 20);
        assert_eq!(Debt::default().charge(Tick(0), u64::MAX, 1), Verdict::FarOver);
        assert_eq!(Debt::default().charge(Tick(u64::MAX), 1, 1), Verdict::Within);
    }
}
