//! The open set in Kubernetes: `kubernetes`.

use std::path::PathBuf;

use kubernetes::{Mode, SliceVersion};

use super::BackplaneKind;
use super::reader::Section;
use crate::kubernetes::KubernetesSettings;

/// The longest name of a Service: it becomes a part of a host name.
const LABEL_BYTES: usize = 63;

/// The longest name of most other objects.
const NAME_BYTES: usize = 253;

pub(super) fn read(root: &mut Section<'_>, kind: &BackplaneKind) -> KubernetesSettings {
    let defaults = KubernetesSettings::default();
    let mut section = root.section("kubernetes");
    let words = [("auto", Mode::Auto), ("on", Mode::On), ("off", Mode::Off)];
    let mode = section.choice("open_set", defaults.mode, &words);
    // Nodes that do not know each other would each take themselves for the whole fleet.
    let is_alone = matches!(kind, BackplaneKind::Memory);
    if is_alone && mode == Mode::On {
        section.problem("open_set", "needs nodes that know each other: backplane.kind = \"redis\" or \"nats\"");
    }
    let service = name(&mut section, "service", &defaults.service, LABEL_BYTES);
    let all_service = name(&mut section, "all_service", &defaults.all_service, LABEL_BYTES);
    if service == all_service {
        section.problem(
            "all_service",
            "must not be kubernetes.service: that one has no selector, this one says which pods there are",
        );
    }
    let versions = [("v1", SliceVersion::V1), ("v1beta1", SliceVersion::V1Beta1)];
    KubernetesSettings {
        mode: if is_alone { Mode::Off } else { mode },
        service,
        all_service,
        lease: name(&mut section, "lease", &defaults.lease, NAME_BYTES),
        namespace: name_opt(&mut section, "namespace", LABEL_BYTES),
        pod_name: name_opt(&mut section, "pod_name", NAME_BYTES),
        slice_version: section.choice("slice_version", defaults.slice_version, &versions),
        deletion_costs: section.flag("deletion_costs", defaults.deletion_costs),
        kubeconfig: section.text_opt("kubeconfig").map(PathBuf::from),
    }
}

fn name(section: &mut Section<'_>, key: &str, default: &str, longest: usize) -> String {
    let name = section.text(key, default);
    check(section, key, &name, longest);
    name
}

fn name_opt(section: &mut Section<'_>, key: &str, longest: usize) -> Option<String> {
    let name = section.text_opt(key)?;
    check(section, key, &name, longest);
    Some(name)
}

/// A name that Kubernetes does not take would show only in the log of a running node.
fn check(section: &Section<'_>, key: &str, name: &str, longest: usize) {
    let is_inner =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (c == '.' && longest > LABEL_BYTES);
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_name = name.chars().all(is_inner) && is_end(name.chars().next()) && is_end(name.chars().next_back());
    if !is_name || name.len() > longest {
        let dots = if longest > LABEL_BYTES { ", '.'" } else { "" };
        section.problem(
            key,
            format!(
                "must be a name in Kubernetes: at most {longest} characters of a-z, 0-9, '-'{dots}, no '-' at its ends"
            ),
        );
    }
}
