//! Channel names: every legal one works, and no two are confused.

use std::sync::Arc;

use super::bench::{Bench, KEEP, client, ensure_eq, everything, healthy, page_texts, texts};
use super::{CaseResult, Factory};
use crate::{ChannelName, PresenceStore};

/// Every ASCII character in every place of a name, names of 255 bytes, and text beyond ASCII, which the server API may
/// use (protocol section 8.1).
pub async fn every_legal_name_works<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let mut names: Vec<ChannelName> = Vec::new();
    for character in (0..=127).map(char::from) {
        names.push(bench.channel(&format!("{character}")));
        names.push(ChannelName::from(format!("{}{character}", bench.channel("end"))));
    }
    let padded = |filler: char| {
        let mut name = bench.channel("long").to_string();
        name.extend(std::iter::repeat_n(filler, 255 - name.len()));
        ChannelName::from(name)
    };
    names.extend(['a', '{', '.', '%', '\u{1f}'].map(padded));
    names.push(bench.channel("\u{e4}\u{4e2d}\u{1f600}"));
    check_apart(&bench, &names).await
}

/// Names that an encoding, a pattern or a case-insensitive server might take for each other.
pub async fn similar_names_are_different_channels<F: Factory>(factory: &F) -> CaseResult {
    let bench = Bench::new(factory).await;
    let labels = [
        "a", "A", "a ", " a", "a.b", "a_b", "a-b", "a%2eb", "a%2Eb", "a%252eb", "a:b", "a%3Ab", "a/b", "a\\b", "{a}",
        "{a", "a}", "a*", "a>", "a?", "[a]", "$a", "#a", "a\0", "a\0b", "a\n", "\u{e9}", "e\u{301}",
    ];
    let mut names: Vec<ChannelName> = labels.iter().map(|label| bench.channel(label)).collect();
    // The unique part first, so that the differences are at the end as well.
    let stem = bench.channel("x").to_string();
    names.extend(labels.iter().map(|label| ChannelName::from(format!("{stem}{label}"))));
    check_apart(&bench, &names).await
}

/// Uses every channel and checks that each holds and delivers its own content only.
async fn check_apart<F: Factory>(bench: &Bench<'_, F>, names: &[ChannelName]) -> CaseResult {
    bench.subscribe(names).await?;
    let mut members = Vec::new();
    for (index, name) in names.iter().enumerate() {
        bench.publish_in(name, &format!("content {index}"), KEEP).await?;
        let info = client(&format!("user {index}"));
        healthy("add_presence", bench.backplane.add_presence(name, Arc::clone(&info)).await)?;
        members.push(info);
    }
    for ((index, name), member) in names.iter().enumerate().zip(members) {
        let expected = [format!("content {index}")];
        ensure_eq!(page_texts(&bench.read(name, everything()).await?), expected, "history of {name:?}");
        let (_, delivered) = bench.stream_of(name, 1).await?;
        ensure_eq!(texts(delivered.iter().map(|entry| &*entry.publication)), expected, "deliveries of {name:?}");
        ensure_eq!(bench.members(name).await?, [member], "members of {name:?}");
    }
    Ok(())
}
