//! Plans are carried out one step at a time, and looked at after each.

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;
use crate::pods::Pod;
use crate::slices::Port;

fn frame(term: u32) -> Frame {
    let port = Port { name: "ws".into(), number: 8000, protocol: "TCP".into(), application: None };
    Frame { service: "ws".into(), service_uid: "s1".into(), ports: vec![port], term }
}

fn pods(numbers: impl Iterator<Item = u16>, has_v6: bool) -> Pods {
    let pod = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let uid = format!("u{number:04}");
        let v6 = has_v6.then(|| [0xfd00, 0, 0, 0, 0, 0, 0, number].into());
        let v4 = Some([10, 0, high, low].into());
        (uid.clone(), Pod { name: format!("pod-{number}"), uid, v4, v6, is_ready: true, ..Pod::default() })
    };
    numbers.map(pod).collect()
}

fn wanted<'a>(frame: &'a Frame, pods: &'a Pods, open: &'a BTreeSet<String>) -> Wanted<'a> {
    Wanted { frame, families: &[Family::V4, Family::V6], pods, open, len_max: 100 }
}

/// What the API server has after `step`.
fn carry_out(existing: &mut Vec<Existing>, step: Step, frame: &Frame) {
    let (name, target) = match step {
        Step::Delete { name, .. } => (name, None),
        Step::Apply { target, .. } | Step::Create(target) => (target.name.clone(), Some(target)),
    };
    existing.retain(|slice| slice.name != name);
    existing.extend(target.map(|target| Existing {
        name,
        uid: "x".into(),
        version: "1".into(),
        family: Some(target.family),
        frame: Some(frame.clone()),
        term: frame.term,
        endpoints: target.endpoints,
        is_whole: true,
    }));
    existing.sort_by(|a, b| a.name.cmp(&b.name));
}

fn all_of(pods: &Pods) -> BTreeSet<String> {
    pods.keys().cloned().collect()
}

#[test]
fn two_families_have_slices_of_their_own() {
    let (frame, pods) = (frame(1), pods(0..250, true));
    let steps = plan(&[], wanted(&frame, &pods, &all_of(&pods)));
    let made = steps.iter().map(|step| match step {
        Step::Create(target) => (target.name.as_str(), target.family, target.endpoints.len()),
        other => panic!("{other:?}"),
    });
    let (v4, v6) = (Family::V4, Family::V6);
    let expected = [
        ("ws-open-ipv4-0", v4, 100),
        ("ws-open-ipv4-1", v4, 100),
        ("ws-open-ipv4-2", v4, 50),
        ("ws-open-ipv6-0", v6, 100),
        ("ws-open-ipv6-1", v6, 100),
        ("ws-open-ipv6-2", v6, 50),
    ];
    assert_eq!(made.collect::<Vec<_>>(), expected);
}

#[test]
fn a_pod_without_an_address_of_a_family_is_in_the_other_only() {
    let (frame, mut pods) = (frame(1), pods(0..2, true));
    pods.get_mut("u0001").expect("there").v6 = None;
    let steps = plan(&[], wanted(&frame, &pods, &all_of(&pods)));
    let lens: Vec<_> = steps.iter().map(|step| matches!(step, Step::Create(t) if t.endpoints.len() == 2)).collect();
    assert_eq!(lens, [true, false]);
}

#[test]
fn nothing_is_written_when_nothing_differs_and_all_when_the_term_does() {
    let (frame, pods) = (frame(1), pods(0..250, false));
    let open = all_of(&pods);
    let mut existing = Vec::new();
    for step in plan(&existing, wanted(&frame, &pods, &open)) {
        carry_out(&mut existing, step, &frame);
    }
    assert_eq!(plan(&existing, wanted(&frame, &pods, &open)), []);
    let next = self::frame(2);
    let steps = plan(&existing, wanted(&next, &pods, &open));
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|step| matches!(step, Step::Apply { version, .. } if version == "1")));
    existing[1].is_whole = false;
    assert_eq!(plan(&existing, wanted(&frame, &pods, &open)).len(), 1, "a slice that somebody has changed");
}

#[test]
fn a_slice_of_no_use_goes_and_its_name_is_not_taken() {
    let (frame, pods) = (frame(1), pods(0..1, false));
    let useless = Existing {
        name: "ws-open-ipv4-0".into(),
        uid: "x".into(),
        version: "9".into(),
        family: None,
        frame: None,
        term: 0,
        endpoints: Endpoints::new(),
        is_whole: false,
    };
    let steps = plan(&[useless], wanted(&frame, &pods, &all_of(&pods)));
    assert!(matches!(&steps[0], Step::Create(target) if target.name == "ws-open-ipv4-1"), "{steps:?}");
    let delete = Step::Delete { name: "ws-open-ipv4-0".into(), uid: "x".into(), version: "9".into() };
    assert_eq!(steps[1..], [delete]);
}

fn published(existing: &[Existing]) -> BTreeSet<String> {
    existing.iter().flat_map(|slice| slice.endpoints.keys().cloned()).collect()
}

proptest! {
    #[test]
    fn what_is_there_before_and_after_is_never_missing_between(
        now in btree_map("[a-e]", btree_set(0_u16..40, 0..14), 0..5),
        open in btree_set(0_u16..40, 1..40),
        len_max in 1_usize..10,
    ) {
        let (frame, pods) = (frame(3), pods(0..40, false));
        let endpoint = |number: u16| {
            let uid = format!("u{number:04}");
            let endpoint = Endpoint::of(&pods[&uid], Family::V4).expect("an address");
            (uid, endpoint)
        };
        let mut existing: Vec<Existing> = Vec::new();
        for (name, numbers) in now {
            let endpoints = numbers.into_iter().map(endpoint).collect();
            carry_out(&mut existing, Step::Create(Target { name, family: Family::V4, endpoints }), &frame);
        }
        let open: BTreeSet<String> = open.into_iter().map(|number| format!("u{number:04}")).collect();
        let lasting: BTreeSet<String> = published(&existing).intersection(&open).cloned().collect();
        let wanted = Wanted { len_max, ..wanted(&frame, &pods, &open) };
        for step in plan(&existing, wanted) {
            carry_out(&mut existing, step, &frame);
            prop_assert!(lasting.is_subset(&published(&existing)));
            prop_assert!(existing.iter().all(|slice| slice.endpoints.len() <= 14.max(len_max)));
        }
        prop_assert_eq!(published(&existing), open.clone());
        prop_assert_eq!(plan(&existing, wanted), []);
    }
}
