//! The suite that every backplane implementation passes.
//!
//! An implementation provides a [`Factory`] and expands [`conformance_tests!`](crate::conformance_tests) in a test
//! target, which makes one named test per case; or it awaits [`run_all`]. Each case is a public function of the factory,
//! makes its own backplane and channels, and returns a [`Violation`] that says which promise is broken.
//!
//! The cases of [`Members`] and [`SessionStore`] are a list of their own, for implementations that have them:
//! [`store_conformance_tests!`](crate::store_conformance_tests) and [`run_all_stores`].
//!
//! The suite assumes what the trait promises and no more: offsets increase but need not be contiguous, the first
//! publication of a channel may not know its predecessor, deliveries arrive later, and the age of a publication is only
//! bounded (readable at least `ttl` after it was published, at most `ttl` after the last one).

mod bench;
mod coverage;
mod expiry;
mod fleet;
mod history;
mod leases;
mod lingering;
mod names;
mod presence;
mod publish;
mod recorder;
mod revocation;
mod sessions;
mod stream;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use coverage::*;
pub use expiry::*;
pub use fleet::*;
pub use history::*;
pub use leases::*;
pub use lingering::*;
pub use names::*;
pub use presence::*;
pub use publish::*;
pub use recorder::Recorder;
pub use revocation::*;
pub use sessions::*;
pub use stream::*;

use crate::{Backplane, Members, SessionStore};

/// Makes backplanes for the suite, and knows their time and faults.
pub trait Factory: Send + Sync {
    /// The implementation under test.
    type Backplane: Backplane;

    /// A backplane that is connected and ready, without a sink. It may share its server with others: the cases use
    /// random channel names.
    fn create(&self) -> impl Future<Output = Arc<Self::Backplane>> + Send;

    /// Another node on the store of a backplane made by [`create`](Self::create). Where a store has one node only, that
    /// is the same again.
    fn create_beside(&self, first: &Arc<Self::Backplane>) -> impl Future<Output = Arc<Self::Backplane>> + Send {
        std::future::ready(Arc::clone(first))
    }

    /// Lets time pass by which the backplane ages its data: a manual clock is advanced, a real server is waited for.
    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// Ends when an expected delivery is given up: some seconds of real time. An implementation that delivers before
    /// `publish` returns may end it at once.
    fn patience(&self) -> impl Future<Output = ()> + Send;

    /// Makes the backplane lose all streams, as after a restart without persistence, and returns when it works again.
    fn lose_data(&self, backplane: &Self::Backplane) -> impl Future<Output = ()> + Send;

    /// A history TTL that this implementation supports and that a test may wait for.
    fn short_ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// How much later than asked for a lingering presence entry may be removed.
    fn linger_slack(&self) -> Duration {
        Duration::from_secs(8)
    }

    /// How much later than promised something may still be readable: the granularity of the implementation's expiry.
    fn expiry_slack(&self) -> Duration {
        Duration::from_millis(500)
    }
}

/// A broken promise, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(String);

impl Violation {
    /// Long lists are cut: the beginning of a difference is enough to find it.
    pub(crate) fn new(mut what: String) -> Self {
        const CHARS_MAX: usize = 2_000;
        if let Some((cut, _)) = what.char_indices().nth(CHARS_MAX) {
            what.truncate(cut);
            what.push_str("...");
        }
        Self(what)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// What a case returns.
pub type CaseResult = Result<(), Violation>;

/// Runs every case, one after another, and returns the first violation with the name of its case.
pub async fn run_all<F: Factory>(factory: &F) -> CaseResult {
    crate::__conformance_cases!(run(factory));
    Ok(())
}

/// Runs every case of presence that lingers, like [`run_all`].
pub async fn run_all_lingering<F: Factory>(factory: &F) -> CaseResult {
    crate::__lingering_conformance_cases!(run(factory));
    Ok(())
}

/// Runs every case of the fleet and of sessions, like [`run_all`].
pub async fn run_all_stores<F: Factory<Backplane: Members + SessionStore>>(factory: &F) -> CaseResult {
    crate::__store_conformance_cases!(run(factory));
    Ok(())
}

/// The one list of cases, handed to the arm `@mode` of [`conformance_tests!`](crate::conformance_tests).
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($mode:ident ($($arguments:tt)*)) => {
        $crate::conformance_tests! { @$mode ($($arguments)*);
            deliveries_come_in_order
            offsets_increase_in_one_epoch
            content_travels_unchanged
            unsubscribed_channels_get_nothing
            subscribe_is_acknowledged
            subscribing_twice_delivers_once
            channels_are_independent
            concurrent_publishers_keep_the_chain
            presence_events_reach_subscribers
            publishing_without_history_has_no_position
            skipping_history_leaves_the_stream_alone
            repeats_publish_nothing
            idempotency_is_per_channel
            repeats_without_history_publish_nothing
            old_versions_are_skipped
            version_epochs_are_compared
            history_reads_forward
            history_reads_backward
            history_reads_from_a_position
            history_reads_the_position_only
            history_of_an_unused_channel_is_a_position
            history_is_trimmed_to_its_size
            positions_come_in_the_order_asked_for
            removing_history_keeps_epoch_and_top
            covered_at_the_top
            covered_at_a_retained_entry
            covered_before_the_oldest_entry
            not_covered_when_trimmed
            not_covered_beyond_the_top
            not_covered_in_another_epoch
            unknown_epoch_compares_offsets
            not_covered_when_cut_by_the_limit
            not_covered_without_a_position
            not_covered_after_removal
            publications_live_as_long_as_promised
            publications_expire_after_the_last
            epoch_and_top_outlive_publications
            forgotten_streams_reuse_no_position
            lost_streams_reuse_no_position
            presence_adds_and_removes
            presence_replaces_an_entry
            presence_counts_users
            presence_is_per_channel
            presence_holds_many_members
            every_legal_name_works
            similar_names_are_different_channels
        }
    };
}

/// The list of cases of the fleet and of sessions, handed on in the same way.
#[doc(hidden)]
#[macro_export]
macro_rules! __store_conformance_cases {
    ($mode:ident ($($arguments:tt)*)) => {
        $crate::conformance_tests! { @$mode ($($arguments)*);
            reports_are_listed_and_replaced
            reports_are_seen_by_all_nodes
            reports_end_unless_renewed
            withdrawn_reports_are_gone
            long_reports_are_refused
            leases_have_one_holder
            released_leases_are_free
            leases_end_unless_renewed
            ended_leases_are_taken_anew
            racing_holders_get_one_lease
            illegal_lease_names_are_refused
            lost_leases_reuse_no_token
            sessions_are_created_once
            stale_writers_are_told_the_record
            racing_writers_have_one_winner
            sessions_end_unless_touched
            deleted_sessions_are_gone
            the_oldest_of_too_many_sessions_leaves
            ended_sessions_take_no_place
            odd_session_ids_are_kept_apart
            large_sessions_are_refused
            lost_sessions_reuse_no_revision
            revoked_sessions_need_authorisation
            new_sessions_are_authorised
            touched_sessions_stay_revoked
        }
    };
}

/// The list of cases of presence that lingers, handed on in the same way.
#[doc(hidden)]
#[macro_export]
macro_rules! __lingering_conformance_cases {
    ($mode:ident ($($arguments:tt)*)) => {
        $crate::conformance_tests! { @$mode ($($arguments)*);
            lingering_members_stay_and_leave_once
            members_that_come_back_do_not_leave
            adoption_tells_whether_anybody_was_there
            lingering_is_per_client
        }
    };
}

/// Makes one `#[test]` per case of presence that lingers, like [`conformance_tests!`](crate::conformance_tests): for
/// implementations on which sessions outlive connections.
#[macro_export]
macro_rules! lingering_conformance_tests {
    ($factory:expr, $run:expr) => {
        $crate::__lingering_conformance_cases! { each ($factory, $run) }
    };
}

/// Makes one `#[test]` per case of the fleet and of sessions, like [`conformance_tests!`](crate::conformance_tests).
#[macro_export]
macro_rules! store_conformance_tests {
    ($factory:expr, $run:expr) => {
        $crate::__store_conformance_cases! { each ($factory, $run) }
    };
}

/// Makes one `#[test]` per case of the suite: `conformance_tests!(factory expression, runner)`, where the runner takes
/// a future, blocks until it is ready and returns its output.
#[macro_export]
macro_rules! conformance_tests {
    (@run ($factory:expr); $($case:ident)*) => {
        $(
            $crate::conformance::$case($factory)
                .await
                .map_err(|violation| $crate::conformance::Violation::new(format!("{}: {violation}", stringify!($case))))?;
        )*
    };
    (@each ($factory:expr, $run:expr); $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                let factory = $factory;
                let outcome: $crate::conformance::CaseResult = ($run)($crate::conformance::$case(&factory));
                if let Err(violation) = outcome {
                    panic!("{violation}");
                }
            }
        )*
    };
    ($factory:expr, $run:expr) => {
        $crate::__conformance_cases! { each ($factory, $run) }
    };
}
