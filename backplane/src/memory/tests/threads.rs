//! Real threads on one backplane: order, atomic reads and counts hold up.

use std::thread;

use super::*;
use crate::{Previous, StoredPublication};

const PUBLISHERS: usize = 4;
const EACH: usize = 2_000;

fn assert_chain(publications: &[StoredPublication]) {
    for pair in publications.windows(2) {
        assert_eq!(pair[1].previous, Previous::Known(pair[0].offset()));
    }
}

#[test]
fn deliveries_and_reads_stay_one_chain_under_contention() {
    let backplane = MemoryBackplane::new(MemoryLimits::default());
    let log = Arc::new(Log::default());
    backplane.attach(Arc::clone(&log) as Arc<dyn Sink>);
    let channel = ChannelName::from("hot");
    done(backplane.subscribe(std::slice::from_ref(&channel))).expect("subscribe");
    let options = HistoryOptions { size: 100, ..HISTORY };
    let start = done(backplane.history(&channel, HistoryQuery::position(), options)).expect("history").top;
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (backplane, channel) = (&backplane, &channel);
            scope.spawn(move || {
                for n in 0..EACH {
                    let data = Bytes::from(format!("{publisher} {n}"));
                    let publication = NewPublication { data, ..NewPublication::default() };
                    let options = PublishOptions { history: Some(options), ..PublishOptions::default() };
                    done(backplane.publish(channel, publication, options)).expect("publish");
                    // Churn in the same maps: it must not disturb the hot channel.
                    let other = ChannelName::from(format!("other{publisher}-{}", n % 50));
                    done(backplane.subscribe(std::slice::from_ref(&other))).expect("subscribe");
                    done(backplane.add_presence(&other, member(n as u128, "ann"))).expect("add");
                    done(backplane.remove_presence(&other, member(n as u128, "").client)).expect("remove");
                    done(backplane.unsubscribe(std::slice::from_ref(&other))).expect("unsubscribe");
                    backplane.sweep(10);
                }
            });
        }
        // A reader that follows with positions of its own, as a recovering client does.
        scope.spawn(|| {
            let mut seen = start.clone();
            while seen.offset.0 < (PUBLISHERS * EACH) as u64 {
                let page = done(backplane.history(&channel, HistoryQuery::since(seen.clone(), 1_000), options))
                    .expect("history");
                assert_chain(&page.publications);
                if page.covered && page.top != seen {
                    assert_eq!(page.publications[0].previous, Previous::Known(seen.offset));
                    assert_eq!(page.publications.last().map(StoredPublication::offset), Some(page.top.offset));
                }
                seen = page.top;
            }
        });
    });
    let seen = log.0.lock();
    assert_eq!(seen.len(), PUBLISHERS * EACH);
    let publications: Vec<_> = seen
        .iter()
        .map(|(of, delivery)| match delivery {
            Delivery::Positioned { epoch, previous, publication } => {
                assert_eq!((of, epoch), (&channel, &start.epoch));
                StoredPublication { publication: Arc::clone(publication), previous: *previous }
            }
            Delivery::Unpositioned(_) | Delivery::Presence(_) => panic!("expected a position: {delivery:?}"),
        })
        .collect();
    assert_eq!(publications[0].previous, Previous::Known(Offset(0)));
    assert_chain(&publications);
    let held = backplane.stats();
    assert_eq!((held.channels, held.subscriptions, held.presence_entries, held.publications), (1, 1, 0, 100));
}

#[test]
fn limits_hold_under_contention() {
    let limits = MemoryLimits { history_bytes: 20_000, channels: 50, ..MemoryLimits::default() };
    let backplane = MemoryBackplane::new(limits);
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let backplane = &backplane;
            scope.spawn(move || {
                for n in 0..EACH {
                    let channel = ChannelName::from(format!("{publisher}-{}", n % 97));
                    let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
                    let publication = NewPublication { data: Bytes::from(vec![0; n % 500]), ..Default::default() };
                    // Another thread may have taken the room just made: a refusal is fine, a wrong count is not.
                    let _ = done(backplane.publish(&channel, publication, options));
                    let held = backplane.stats();
                    assert!(held.channels <= limits.channels, "{held:?}");
                    assert!(held.history_bytes <= limits.history_bytes + PUBLISHERS * 1_000, "{held:?}");
                }
            });
        }
    });
    let held = backplane.stats();
    assert!(held.streams_evicted > 0 && held.publications_evicted > 0, "{held:?}");
    for stripe in &backplane.stripes {
        stripe.lock().check();
    }
    backplane.forget();
    let held = backplane.stats();
    assert_eq!((held.channels, held.streams, held.publications, held.history_bytes), (0, 0, 0, 0));
}
