//! Which properties a subscription gets: what the namespace forces, what the token overrides, what the client asks for
//! and may have (protocol sections 4.3 to 4.7, 6.4 and 8.3).

use backplane::Epoch;
use protocol::SubscribeRequest;

use crate::channels::{ChannelOptions, RecoveryMode};
use crate::io::{Overrides, RecoverFrom, RecoverMode};
use crate::permissions::{Caller, has_presence_access, may_history};
use crate::subscriptions::Flags;

/// `flag` of a subscribe request: error 112 instead of `recovered: false`.
const FLAG_STRICT_RECOVERY: i64 = 2;

/// What somebody wants of a subscription beyond being subscribed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wish {
    pub recover: bool,
    pub epoch: String,
    pub offset: u64,
    pub positioned: bool,
    pub recoverable: bool,
    pub join_leave: bool,
    pub strict_recovery: bool,
}

impl Wish {
    /// Of a subscribe command.
    pub fn of_client(request: &mut SubscribeRequest) -> Self {
        Self {
            positioned: request.positioned,
            recoverable: request.recoverable,
            join_leave: request.join_leave,
            strict_recovery: request.flag & FLAG_STRICT_RECOVERY != 0,
            ..Self::of_connect(request)
        }
    }

    /// Of an entry of `subs` in a connect command, where only the position counts.
    pub fn of_connect(request: &mut SubscribeRequest) -> Self {
        let epoch = std::mem::take(&mut request.epoch);
        Self { recover: request.recover, epoch, offset: request.offset, ..Self::default() }
    }
}

/// What becomes of a wish.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub flags: Flags,
    pub recover: Option<RecoverFrom>,
    pub has_history: bool,
}

/// Decides. What a client asks for without having the right to it is silently not enabled.
pub(crate) fn plan(options: &ChannelOptions, overrides: Overrides, wish: &Wish, caller: Caller<'_>) -> Plan {
    let subscriber = Caller { subscribed: true, ..caller };
    let has_history = options.history.is_some();
    let history_access = may_history(options, subscriber).is_ok();

    let force_recovery = overrides.force_recovery.unwrap_or(options.force_recovery);
    let may_ask_recovery = options.allow_recovery || history_access;
    let recoverable = has_history && (force_recovery || (wish.recoverable && may_ask_recovery));

    let force_positioning = overrides.force_positioning.unwrap_or(options.force_positioning);
    let may_ask_positioning = options.allow_positioning || history_access;
    let asks_positioning = wish.positioned && may_ask_positioning;
    let positioned = recoverable || (has_history && (force_positioning || asks_positioning));

    let join_leave = overrides.join_leave.unwrap_or(options.join_leave);
    let force_push = overrides.force_push_join_leave.unwrap_or(options.force_push_join_leave);
    let asks_push = wish.join_leave && join_leave && has_presence_access(options, subscriber);

    let flags = Flags::default()
        .with(Flags::RECOVERABLE, recoverable)
        .with(Flags::POSITIONED, positioned)
        .with(Flags::PRESENCE, overrides.presence.unwrap_or(options.presence))
        .with(Flags::JOIN_LEAVE, join_leave)
        .with(Flags::PUSH_JOIN_LEAVE, force_push || asks_push);

    let mode = match options.force_recovery_mode {
        RecoveryMode::Stream => RecoverMode::Stream,
        RecoveryMode::Cache => RecoverMode::Cache,
    };
    let automatic = mode == RecoverMode::Cache && options.auto_cache_recover;
    let recover = (recoverable && (wish.recover || automatic)).then(|| RecoverFrom {
        epoch: Epoch::from(wish.epoch.as_str()),
        offset: backplane::Offset(wish.offset),
        mode,
    });
    Plan { flags, recover, has_history }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane::{HistoryOptions, Offset, UserId};

    use super::*;

    fn with_history() -> ChannelOptions {
        let ttl = Duration::from_secs(60);
        ChannelOptions { history: Some(HistoryOptions { size: 10, ttl, meta_ttl: ttl }), ..ChannelOptions::default() }
    }

    fn everything() -> Wish {
        Wish {
            recover: true,
            epoch: "e".into(),
            offset: 7,
            positioned: true,
            recoverable: true,
            join_leave: true,
            strict_recovery: false,
        }
    }

    /// positioned, recoverable, recovers, presence, emits join/leave, is pushed join/leave
    fn outcome(options: &ChannelOptions, overrides: Overrides, wish: &Wish) -> [bool; 6] {
        let user = UserId::from("u");
        let plan = plan(options, overrides, wish, Caller { user: &user, subscribed: false, insecure: false });
        [
            plan.flags.has(Flags::POSITIONED),
            plan.flags.has(Flags::RECOVERABLE),
            plan.recover.is_some(),
            plan.flags.has(Flags::PRESENCE),
            plan.flags.has(Flags::JOIN_LEAVE),
            plan.flags.has(Flags::PUSH_JOIN_LEAVE),
        ]
    }

    fn letters(flags: [bool; 6]) -> String {
        "prRPjJ".chars().zip(flags).filter(|(_, set)| *set).map(|(letter, _)| letter).collect()
    }

    #[test]
    fn properties_come_from_options_overrides_and_permitted_wishes() {
        let none = ChannelOptions::default();
        let history = with_history();
        let no = Overrides::default();
        let nothing = Wish::default();
        let all = everything();
        let asks_positions = Wish { positioned: true, ..nothing.clone() };
        for (row, (options, overrides, wish, expected)) in [
            (none.clone(), no, &all, ""),
            (history.clone(), no, &all, ""),
            (ChannelOptions { allow_positioning: true, ..history.clone() }, no, &all, "p"),
            (ChannelOptions { allow_positioning: true, ..history.clone() }, no, &nothing, ""),
            (ChannelOptions { allow_recovery: true, ..history.clone() }, no, &all, "prR"),
            (ChannelOptions { allow_recovery: true, ..history.clone() }, no, &asks_positions, ""),
            (ChannelOptions { allow_recovery: true, ..none.clone() }, no, &all, ""),
            (ChannelOptions { allow_history_for_client: true, ..history.clone() }, no, &all, "prR"),
            (ChannelOptions { allow_history_for_subscriber: true, ..history.clone() }, no, &all, "prR"),
            (ChannelOptions { allow_history_for_subscriber: true, ..history.clone() }, no, &asks_positions, "p"),
            (ChannelOptions { force_positioning: true, ..history.clone() }, no, &nothing, "p"),
            (ChannelOptions { force_recovery: true, ..history.clone() }, no, &nothing, "pr"),
            (ChannelOptions { force_recovery: true, ..history.clone() }, no, &all, "prR"),
            (
                ChannelOptions { force_recovery: true, ..history.clone() },
                Overrides { force_recovery: Some(false), ..no },
                &all,
                "",
            ),
            (history.clone(), Overrides { force_recovery: Some(true), ..no }, &nothing, "pr"),
            (history.clone(), Overrides { force_positioning: Some(true), ..no }, &nothing, "p"),
            (none.clone(), Overrides { force_recovery: Some(true), ..no }, &all, ""),
            (ChannelOptions { presence: true, ..none.clone() }, no, &nothing, "P"),
            (
                ChannelOptions { presence: true, ..none.clone() },
                Overrides { presence: Some(false), ..no },
                &nothing,
                "",
            ),
            (none.clone(), Overrides { presence: Some(true), ..no }, &nothing, "P"),
            (ChannelOptions { join_leave: true, ..none.clone() }, no, &all, "j"),
            (ChannelOptions { join_leave: true, allow_presence_for_client: true, ..none.clone() }, no, &all, "jJ"),
            (ChannelOptions { join_leave: true, allow_presence_for_subscriber: true, ..none.clone() }, no, &all, "jJ"),
            (ChannelOptions { allow_presence_for_client: true, ..none.clone() }, no, &all, ""),
            (ChannelOptions { force_push_join_leave: true, ..none.clone() }, no, &nothing, "J"),
            (none, Overrides { join_leave: Some(true), force_push_join_leave: Some(true), ..no }, &nothing, "jJ"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(letters(outcome(&options, overrides, wish)), expected, "row {row}");
        }
    }

    #[test]
    fn cache_mode_recovers_on_request_or_on_every_subscribe() {
        let cache = ChannelOptions { force_recovery: true, force_recovery_mode: RecoveryMode::Cache, ..with_history() };
        let automatic = ChannelOptions { auto_cache_recover: true, ..cache.clone() };
        let user = UserId::from("u");
        let caller = Caller { user: &user, subscribed: false, insecure: false };
        let recover = |options, wish: &Wish| plan(options, Overrides::default(), wish, caller).recover;
        let from = |epoch: &str, offset| {
            Some(RecoverFrom { epoch: Epoch::from(epoch), offset: Offset(offset), mode: RecoverMode::Cache })
        };
        assert_eq!(recover(&cache, &Wish::default()), None);
        assert_eq!(recover(&cache, &everything()), from("e", 7));
        assert_eq!(recover(&automatic, &Wish::default()), from("", 0));
        assert_eq!(recover(&automatic, &everything()), from("e", 7));
    }
}
