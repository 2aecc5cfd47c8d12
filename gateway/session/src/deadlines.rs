//! When a session has to be looked at again: stale, ping, pong, expiry (protocol sections 1.4, 3, 4.6 and 6.3).

use std::time::Duration;

use backplane::ClientId;
use protocol::Reply;

use crate::close::CloseCode;
use crate::error::UnsubscribeCode;
use crate::io::Output;
use crate::session::{Phase, Session};
use crate::settings::{Context, Settings};
use crate::subscriptions::Flags;
use crate::time::{Now, Tick};

/// The longest time to live that a client is told, so that every SDK can keep it in a timer (protocol section 6.3).
const TTL_MAX_SECONDS: i64 = 365 * 24 * 60 * 60;

/// Every pending deadline; [`Tick::NEVER`] for those that are not set.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// Before the connect reply: when the connection is stale. Afterwards: when the next ping is due, or, of a session
    /// that is about to close, when it no longer waits for answers.
    pub schedule: Tick,
    /// When the answer to a ping is overdue.
    pub pong: Tick,
    /// When the connection ends unless refreshed, grace included.
    pub connection: Tick,
    /// When a subscription may have expired. Never later than the first of them; earlier when that one has left or was
    /// prolonged, in which case the visit finds nothing to do.
    pub subscription: Tick,
}

impl Deadlines {
    pub fn new(now: Now, settings: &Settings) -> Self {
        Self {
            schedule: now.tick.after(settings.stale_delay),
            pong: Tick::NEVER,
            connection: Tick::NEVER,
            subscription: Tick::NEVER,
        }
    }

    pub fn clear(&mut self) {
        *self = Self { schedule: Tick::NEVER, pong: Tick::NEVER, connection: Tick::NEVER, subscription: Tick::NEVER };
    }

    pub fn next(&self) -> Option<Tick> {
        let next = self.schedule.min(self.pong).min(self.connection).min(self.subscription);
        (next != Tick::NEVER).then_some(next)
    }

    /// Takes the expiry of one more subscription into account.
    pub fn expect_subscription(&mut self, expiry: Tick) {
        self.subscription = self.subscription.min(expiry);
    }
}

/// When something that expires at a Unix second ends for good.
pub(crate) fn expiry_tick(now: Now, expire_at: Option<i64>, grace: Duration) -> Tick {
    match expire_at {
        None => Tick::NEVER,
        Some(at) => {
            let seconds = u64::try_from(at.saturating_sub(now.unix)).unwrap_or(0);
            // Never NEVER: an absurdly late expiry is still an expiry.
            now.tick.after(Duration::from_secs(seconds)).after(grace).min(Tick(u64::MAX - 1))
        }
    }
}

/// `expires` and `ttl` as results and pushes carry them.
pub(crate) fn ttl(now: Now, expire_at: Option<i64>) -> (bool, u32) {
    match expire_at {
        None => (false, 0),
        Some(at) => {
            // At least 1, because 0 means absent on the wire.
            let seconds = at.saturating_sub(now.unix).clamp(1, TTL_MAX_SECONDS);
            (true, u32::try_from(seconds).expect("a year of seconds fits"))
        }
    }
}

/// Whether a point of Unix time has come.
pub(crate) fn is_past(now: Now, expire_at: Option<i64>) -> bool {
    expire_at.is_some_and(|at| at <= now.unix)
}

impl Session {
    /// When [`crate::Input::Deadline`] is due; `None` never. May be earlier than needed, never later.
    pub fn next_deadline(&self) -> Option<Tick> {
        if self.phase == Phase::Answering {
            // Nothing else matters any more, not even what the last answers have set.
            return Some(self.deadlines.schedule);
        }
        self.deadlines.next()
    }

    pub(crate) fn deadline(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        if self.phase == Phase::Answering {
            if now.tick >= self.deadlines.schedule {
                self.end_answering(out);
            }
            return;
        }
        if now.tick >= self.deadlines.connection && !self.ask_refresh(ctx, now, out) {
            return self.close(CloseCode::ConnectionExpired, out);
        }
        match self.phase {
            Phase::Fresh | Phase::Refused => {
                if now.tick >= self.deadlines.schedule {
                    self.close(CloseCode::Stale, out);
                }
            }
            // The client did its part, so it must not be told the terminal 3502: that we cannot answer is our fault.
            Phase::Verifying | Phase::Joining => {
                if now.tick >= self.deadlines.schedule {
                    self.close(CloseCode::InternalServerError, out);
                }
            }
            Phase::Open => {
                self.check_pong(ctx, now, out);
                self.expire_subscriptions(ctx, now, out);
                self.ping(ctx, now, out);
            }
            Phase::Answering | Phase::Closed => {}
        }
    }

    /// The first ping comes between half and the full interval, so that connections made together do not ping together.
    pub(crate) fn schedule_first_ping(&mut self, ctx: &Context<'_>, now: Now) {
        let interval = ctx.settings.ping_interval;
        self.deadlines.schedule =
            if interval.is_zero() { Tick::NEVER } else { now.tick.after(first_ping(self.client, interval)) };
    }

    fn check_pong(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        if now.tick < self.deadlines.pong {
            return;
        }
        if self.wants_commands() {
            self.close(CloseCode::NoPong, out);
        } else {
            // We are the ones who do not read: the pong may sit in the socket.
            self.deadlines.pong = now.tick.after(ctx.settings.pong_timeout);
        }
    }

    fn ping(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        if self.phase != Phase::Open || now.tick < self.deadlines.schedule {
            return;
        }
        out.push(Output::Send(Reply::default()));
        self.pings_unanswered = self.pings_unanswered.saturating_add(1);
        let settings = ctx.settings;
        if settings.wants_pongs() && self.deadlines.pong == Tick::NEVER {
            self.deadlines.pong = now.tick.after(settings.pong_timeout);
        }
        // By the schedule and not by `now`, so that late visits do not add up; unless a whole interval was missed.
        let next = self.deadlines.schedule.after(settings.ping_interval);
        self.deadlines.schedule = if settings.ping_interval.is_zero() {
            Tick::NEVER
        } else if next > now.tick {
            next
        } else {
            now.tick.after(settings.ping_interval)
        };
    }

    /// A pong answers one ping at once, whatever else is queued.
    pub(crate) fn pong(&mut self, out: &mut Vec<Output>) {
        match self.pings_unanswered.checked_sub(1) {
            None => self.close(CloseCode::BadRequest, out),
            Some(left) => {
                self.pings_unanswered = left;
                if left == 0 {
                    self.deadlines.pong = Tick::NEVER;
                }
            }
        }
    }

    fn expire_subscriptions(&mut self, ctx: &Context<'_>, now: Now, out: &mut Vec<Output>) {
        if self.phase != Phase::Open || now.tick < self.deadlines.subscription {
            return;
        }
        self.ask_sub_refresh(ctx, now, out);
        let expired: Vec<_> = self.subs.iter().filter(|entry| now.tick >= entry.expiry()).collect();
        if expired.iter().any(|entry| entry.flags.has(Flags::SERVER_SIDE)) {
            return self.close(CloseCode::SubscriptionExpired, out);
        }
        let expired: Vec<_> = expired.into_iter().map(|entry| entry.channel.clone()).collect();
        for channel in expired {
            self.end_subscription(&channel, UnsubscribeCode::SubscriptionExpired, out);
        }
        self.deadlines.subscription = self.subs.iter().map(|entry| entry.expiry()).min().unwrap_or(Tick::NEVER);
    }
}

/// Between half and the full interval, decided by the random bytes of the id.
fn first_ping(client: ClientId, interval: Duration) -> Duration {
    // The first four bytes of a UUID v4 are all random.
    let [a, b, c, d, ..] = *client.0.as_bytes();
    let fraction = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    interval.mul_f64(0.5 + fraction / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ping_is_spread_over_the_second_half_of_the_interval() {
        let interval = Duration::from_secs(24);
        let at = |first: u32| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&first.to_be_bytes());
            first_ping(ClientId(uuid::Uuid::from_bytes(bytes)), interval)
        };
        assert_eq!(at(0), Duration::from_secs(12));
        assert_eq!(at(u32::MAX), Duration::from_secs(24));
        assert_eq!(at(u32::MAX / 2).as_secs(), 17);
    }

    #[test]
    fn expiry_and_ttl_of_any_token() {
        let now = Now { tick: Tick(5_000), unix: 1_000 };
        let grace = Duration::from_secs(25);
        for (expire_at, tick, told, past) in [
            (None, Tick::NEVER, (false, 0), false),
            (Some(1_060), Tick(90_000), (true, 60), false),
            (Some(1_000), Tick(30_000), (true, 1), true),
            (Some(i64::MIN), Tick(30_000), (true, 1), true),
            (Some(1_000 + TTL_MAX_SECONDS + 5), Tick(31_536_035_000), (true, 31_536_000), false),
            (Some(i64::MAX), Tick(u64::MAX - 1), (true, 31_536_000), false),
        ] {
            assert_eq!(expiry_tick(now, expire_at, grace), tick, "{expire_at:?}");
            assert_eq!(ttl(now, expire_at), told, "{expire_at:?}");
            assert_eq!(is_past(now, expire_at), past, "{expire_at:?}");
        }
    }
}
