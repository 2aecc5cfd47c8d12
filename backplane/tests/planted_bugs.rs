//! The conformance suite finds bugs: each test plants one in the in-memory backplane and names the cases that must fail.

mod support;

use backplane::conformance::{self, Factory, run_all, run_all_lingering, run_all_stores};

use support::broken::{Broken, Bug};
use support::{Wrapped, ready_at_once};

fn planted(bug: Bug) -> impl Factory<Backplane = Broken> {
    Wrapped::new(move |inner| Broken::new(bug, inner), Broken::forget)
}

#[test]
fn without_a_bug_the_wrapper_passes() {
    ready_at_once(run_all(&planted(Bug::Nothing))).expect("every case passes");
    ready_at_once(run_all_lingering(&planted(Bug::Nothing))).expect("every case passes");
    ready_at_once(run_all_stores(&planted(Bug::Nothing))).expect("every case passes");
}

/// One test per bug: every listed case must report a violation, and so must the list of cases as a whole.
macro_rules! found {
    ($all:ident: $($test:ident: $bug:ident by $($case:ident),+;)+) => {
        $(
            #[test]
            fn $test() {
                $(
                    let outcome = ready_at_once(conformance::$case(&planted(Bug::$bug)));
                    assert!(outcome.is_err(), "{} does not find it", stringify!($case));
                )+
                ready_at_once($all(&planted(Bug::$bug))).expect_err("the suite does not find it");
            }
        )+
    };
}

found! {
    run_all:
    previous_is_one_too_low: PreviousIsOneTooLow by deliveries_come_in_order, concurrent_publishers_keep_the_chain;
    previous_is_never_known: PreviousIsNeverKnown by deliveries_come_in_order;
    deliveries_swap_places: DeliveriesSwapPlaces by deliveries_come_in_order, concurrent_publishers_keep_the_chain;
    every_tenth_delivery_is_lost: EveryTenthDeliveryIsLost by deliveries_come_in_order;
    deliveries_come_twice: DeliveriesComeTwice by deliveries_come_in_order, subscribing_twice_delivers_once;
    deliveries_name_another_epoch: DeliveriesNameAnotherEpoch by deliveries_come_in_order;
    tags_are_lost: TagsAreLost by content_travels_unchanged;
    publishers_are_lost: PublishersAreLost by content_travels_unchanged;
    epochs_are_reused: EpochsAreReused by forgotten_streams_reuse_no_position, lost_streams_reuse_no_position;
    idempotency_is_ignored: IdempotencyIsIgnored by repeats_publish_nothing, repeats_without_history_publish_nothing;
    idempotency_spans_channels: IdempotencySpansChannels by idempotency_is_per_channel;
    versions_are_ignored: VersionsAreIgnored by old_versions_are_skipped, version_epochs_are_compared;
    version_epochs_are_ignored: VersionEpochsAreIgnored by version_epochs_are_compared;
    always_covered: AlwaysCovered by not_covered_when_trimmed, not_covered_beyond_the_top,
        not_covered_in_another_epoch, not_covered_when_cut_by_the_limit, not_covered_after_removal,
        epoch_and_top_outlive_publications, lost_streams_reuse_no_position;
    never_covered: NeverCovered by covered_at_the_top, covered_at_a_retained_entry, covered_before_the_oldest_entry,
        history_of_an_unused_channel_is_a_position;
    covered_when_cut_by_the_limit: CoveredWhenCutByTheLimit by not_covered_when_cut_by_the_limit;
    covered_in_another_epoch: CoveredInAnotherEpoch by not_covered_in_another_epoch;
    covered_beyond_the_top: CoveredBeyondTheTop by not_covered_beyond_the_top;
    covered_without_a_position: CoveredWithoutAPosition by not_covered_without_a_position;
    covered_when_trimmed: CoveredWhenTrimmed by not_covered_when_trimmed, not_covered_after_removal;
    unknown_epochs_are_refused: UnknownEpochsAreRefused by unknown_epoch_compares_offsets;
    subscribes_take_effect_late: SubscribesTakeEffectLate by subscribe_is_acknowledged;
    unsubscribes_are_ignored: UnsubscribesAreIgnored by unsubscribed_channels_get_nothing,
        subscribing_twice_delivers_once;
    skipped_history_is_stored: SkippedHistoryIsStored by skipping_history_leaves_the_stream_alone,
        publishing_without_history_has_no_position;
    reverse_is_ignored: ReverseIsIgnored by history_reads_backward, history_reads_from_a_position;
    limits_are_ignored: LimitsAreIgnored by history_reads_forward, history_reads_backward;
    since_is_inclusive: SinceIsInclusive by history_reads_from_a_position;
    positions_are_sorted: PositionsAreSorted by positions_come_in_the_order_asked_for;
    removal_forgets_the_epoch: RemovalForgetsTheEpoch by removing_history_keeps_epoch_and_top;
    removal_is_ignored: RemovalIsIgnored by removing_history_keeps_epoch_and_top, not_covered_after_removal;
    sizes_are_ignored: SizesAreIgnored by history_is_trimmed_to_its_size;
    publications_die_young: PublicationsDieYoung by publications_live_as_long_as_promised;
    publications_live_for_ever: PublicationsLiveForEver by publications_expire_after_the_last;
    epochs_die_with_publications: EpochsDieWithPublications by epoch_and_top_outlive_publications;
    names_ignore_case: NamesIgnoreCase by every_legal_name_works, similar_names_are_different_channels;
    long_names_are_cut: LongNamesAreCut by every_legal_name_works;
    null_bytes_end_names: NullBytesEndNames by every_legal_name_works;
    leaves_are_lost: LeavesAreLost by presence_events_reach_subscribers;
    presence_events_go_everywhere: PresenceEventsGoEverywhere by presence_events_reach_subscribers;
    anonymous_users_count_each: AnonymousUsersCountEach by presence_counts_users;
    presence_is_never_replaced: PresenceIsNeverReplaced by presence_replaces_an_entry;
    presence_spans_channels: PresenceSpansChannels by presence_is_per_channel;
    presence_is_never_removed: PresenceIsNeverRemoved by presence_adds_and_removes;
    presence_lists_are_cut: PresenceListsAreCut by presence_holds_many_members;
}

found! {
    run_all_lingering:
    adopted_entries_leave: AdoptedEntriesLeave by members_that_come_back_do_not_leave;
    adoption_is_not_noticed: AdoptionIsNotNoticed by members_that_come_back_do_not_leave;
    adoption_is_always_noticed: AdoptionIsAlwaysNoticed by adoption_tells_whether_anybody_was_there;
    lingering_is_ignored: LingeringIsIgnored by lingering_members_stay_and_leave_once;
    lingering_leaves_are_lost: LingeringLeavesAreLost by lingering_members_stay_and_leave_once,
        lingering_is_per_client;
    lingering_never_ends: LingeringNeverEnds by lingering_members_stay_and_leave_once;
}

found! {
    run_all_stores:
    reports_never_end: ReportsNeverEnd by reports_end_unless_renewed, withdrawn_reports_are_gone;
    ages_stand_still: AgesStandStill by reports_end_unless_renewed;
    long_reports_are_cut: LongReportsAreCut by long_reports_are_refused;
    withdrawals_are_ignored: WithdrawalsAreIgnored by withdrawn_reports_are_gone;
    leases_go_to_two: LeasesGoToTwo by leases_have_one_holder, racing_holders_get_one_lease, released_leases_are_free,
        leases_end_unless_renewed;
    leases_are_one: LeasesAreOne by leases_have_one_holder;
    leases_never_end: LeasesNeverEnd by leases_end_unless_renewed, ended_leases_are_taken_anew;
    tokens_go_back: TokensGoBack by released_leases_are_free, leases_end_unless_renewed, ended_leases_are_taken_anew;
    tokens_change_with_renewals: TokensChangeWithRenewals by leases_have_one_holder, leases_end_unless_renewed;
    tokens_restart_after_a_loss: TokensRestartAfterALoss by lost_leases_reuse_no_token;
    holders_keep_their_tokens: HoldersKeepTheirTokens by released_leases_are_free, ended_leases_are_taken_anew;
    anybody_releases: AnybodyReleases by released_leases_are_free;
    releases_are_ignored: ReleasesAreIgnored by released_leases_are_free, racing_holders_get_one_lease;
    users_share_sessions: UsersShareSessions by odd_session_ids_are_kept_apart, the_oldest_of_too_many_sessions_leaves;
    user_ids_ignore_case: UserIdsIgnoreCase by odd_session_ids_are_kept_apart;
    session_ids_ignore_case: SessionIdsIgnoreCase by odd_session_ids_are_kept_apart;
    null_bytes_end_session_ids: NullBytesEndSessionIds by odd_session_ids_are_kept_apart;
    long_session_ids_are_cut: LongSessionIdsAreCut by large_sessions_are_refused;
    session_cap_is_ignored: SessionCapIsIgnored by the_oldest_of_too_many_sessions_leaves,
        ended_sessions_take_no_place;
    sessions_die_young: SessionsDieYoung by sessions_end_unless_touched;
    sessions_never_end: SessionsNeverEnd by sessions_end_unless_touched, ended_sessions_take_no_place;
    large_sessions_are_cut: LargeSessionsAreCut by large_sessions_are_refused;
    stale_writes_are_accepted: StaleWritesAreAccepted by stale_writers_are_told_the_record,
        racing_writers_have_one_winner, sessions_are_created_once;
    conflicts_hide_the_record: ConflictsHideTheRecord by stale_writers_are_told_the_record,
        racing_writers_have_one_winner, sessions_are_created_once;
    revisions_are_reused: RevisionsAreReused by deleted_sessions_are_gone, sessions_end_unless_touched,
        lost_sessions_reuse_no_revision;
    touches_are_ignored: TouchesAreIgnored by sessions_end_unless_touched;
    touches_are_writes: TouchesAreWrites by sessions_end_unless_touched, the_oldest_of_too_many_sessions_leaves;
    deletes_are_ignored: DeletesAreIgnored by deleted_sessions_are_gone;
    revocations_are_ignored: RevocationsAreIgnored by revoked_sessions_need_authorisation, new_sessions_are_authorised,
        touched_sessions_stay_revoked;
    revocations_last_for_ever: RevocationsLastForEver by revoked_sessions_need_authorisation,
        new_sessions_are_authorised;
    any_write_authorises: AnyWriteAuthorises by revoked_sessions_need_authorisation;
}
