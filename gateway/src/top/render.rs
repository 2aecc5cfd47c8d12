//! The state of the fleet as lines of text: a pure function, so that it can be tested to the last character.

use unicode_width::UnicodeWidthChar;

use super::cluster::{Cluster, Node};

/// The longest name shown. Kubernetes' names of pods of a Deployment seldom have more; of longer ones the end counts.
const NAME_WIDTH: usize = 40;
/// The longest bar: more cells say no more.
const BAR_WIDTH_MAX: usize = 40;
/// The shortest one that says something.
const BAR_WIDTH_MIN: usize = 8;
/// Between two columns.
const GAP: &str = "  ";

/// What there is room for, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Characters of a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// The state as lines that fit. `trouble` is why it is not a newer one.
pub fn lines(cluster: &Cluster, trouble: Option<&str>, size: Size) -> Vec<String> {
    let mut lines: Vec<String> = header(cluster, trouble).iter().flat_map(|line| wrapped(line, size.columns)).collect();
    lines.push(String::new());
    match &cluster.nodes {
        None => lines.push("the table of nodes could not be read".to_owned()),
        Some(nodes) => {
            let room = size.rows.saturating_sub(lines.len() + 1);
            lines.extend(table(cluster, &Chosen::of(nodes, room), size.columns));
        }
    }
    lines.truncate(size.rows);
    lines.iter().map(|line| cut(line.trim_end(), size.columns)).collect()
}

fn header(cluster: &Cluster, trouble: Option<&str>) -> Vec<String> {
    let Cluster { connections, ready, draining, starting, .. } = cluster;
    let nodes = ready + draining + starting;
    let Cluster { mean, max, imbalance, level, arrivals, budget, .. } = cluster;
    let spare = cluster.spare_accepts.map_or("unknown".to_owned(), |spare| format!("{spare:.1}/s"));
    let open_set = match (cluster.open_set, cluster.placement_age_ms) {
        (false, _) => "not in use".to_owned(),
        (true, None) => "in use".to_owned(),
        (true, Some(written)) => format!("written {} ago", age(written)),
    };
    let mut lines = vec![
        format!(
            "{} on {}: {ready} ready, {draining} draining, {starting} starting",
            counted(*connections, "connection"),
            counted(nodes, "node")
        ),
        format!("mean {}   max {}   imbalance {imbalance:.2}   level {}", load(*mean), load(*max), load(*level)),
        format!("arrivals {arrivals:.1}/s   spare accepts {spare}   budget {budget:.1}/s   open set {open_set}"),
        format!(
            "digest {} of term {}, {} old, from {}",
            cluster.sequence,
            cluster.term,
            age(cluster.age_ms),
            asked(cluster)
        ),
    ];
    if !cluster.pauses.is_empty() {
        let pauses: Vec<String> = cluster.pauses.iter().map(|pause| clean(pause).replace('_', " ")).collect();
        lines.push(format!("paused: {}", pauses.join(", ")));
    }
    lines.extend(cluster.explanation.iter().map(|explanation| clean(explanation)));
    lines.extend(trouble.map(|trouble| format!("NOT NEW: {}", clean(trouble))));
    lines
}

/// The name of the node that was asked.
fn asked(cluster: &Cluster) -> String {
    let nodes = cluster.nodes.as_deref().unwrap_or_default();
    nodes.iter().find(|node| node.id == cluster.asked).map_or_else(|| clean(&cluster.asked), name)
}

/// The nodes that are shown.
struct Chosen<'a> {
    first: Vec<&'a Node>,
    /// How many are left out after the first ones.
    more: usize,
    last: Vec<&'a Node>,
}

impl<'a> Chosen<'a> {
    /// All nodes as they come, by name, if there is room. Else the fullest and the emptiest ones: they are what is out of
    /// level.
    fn of(nodes: &'a [Node], room: usize) -> Self {
        let mut all: Vec<&Node> = nodes.iter().collect();
        if all.len() <= room {
            return Self { first: all, more: 0, last: Vec::new() };
        }
        all.sort_by(|one, other| other.load.total_cmp(&one.load));
        // One line says how many are left out.
        let shown = room.saturating_sub(1);
        let last = all.split_off(all.len() - shown / 2);
        let more = all.len() - (shown - shown / 2);
        all.truncate(shown - shown / 2);
        Self { first: all, more, last }
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        self.first.iter().chain(&self.last).copied()
    }
}

/// How the cells of a column stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stand {
    Left,
    Right,
}

struct Column {
    title: &'static str,
    stand: Stand,
    /// Where there is no room for all, the columns with the least go first.
    weight: u8,
    cells: Vec<String>,
    width: usize,
}

fn table(cluster: &Cluster, chosen: &Chosen<'_>, columns_max: usize) -> Vec<String> {
    let mut columns = columns(cluster, chosen);
    while total(&columns) > columns_max && columns.len() > 2 {
        let lightest = columns.iter().enumerate().min_by_key(|(_, column)| column.weight).map_or(0, |(at, _)| at);
        columns.remove(lightest);
    }
    let free = columns_max.saturating_sub(total(&columns));
    if let Some(bars) = columns.iter_mut().find(|column| column.title == BAR_TITLE) {
        bars.width = (bars.width + free).min(BAR_WIDTH_MAX);
        let most = cluster.nodes.iter().flatten().map(|node| node.connections).max().unwrap_or(0);
        bars.cells = chosen.nodes().map(|node| bar(node.connections, most, bars.width)).collect();
    }
    let mut lines = vec![line(&columns, |column| column.title)];
    lines.extend((0..chosen.nodes().count()).map(|row| line(&columns, |column| &column.cells[row])));
    if chosen.more > 0 {
        lines.insert(1 + chosen.first.len(), format!("... {} more", grouped(chosen.more as u64)));
    }
    lines
}

/// A bar explains itself.
const BAR_TITLE: &str = "";

fn columns(cluster: &Cluster, chosen: &Chosen<'_>) -> Vec<Column> {
    let column = |title: &'static str, stand, weight, cell: &dyn Fn(&Node) -> String| {
        let cells: Vec<String> = chosen.nodes().map(cell).collect();
        let least = if title == BAR_TITLE { BAR_WIDTH_MIN } else { 0 };
        let width = cells.iter().map(|cell| width(cell)).chain([title.len(), least]).max().unwrap_or(0);
        Column { title, stand, weight, cells, width }
    };
    let per_second = |rate: f64| format!("{rate:.1}");
    let of_mean = |node: &Node| match cluster.mean {
        mean if mean > 0.0 => format!("{:.0} %", node.load / mean * 100.0),
        _ => "-".to_owned(),
    };
    let mut columns = vec![
        column("NODE", Stand::Left, u8::MAX, &name),
        column("STATE", Stand::Left, 7, &|node| clean(&node.state)),
        column("REVISION", Stand::Left, 2, &|node| clean(&node.revision)),
        column(BAR_TITLE, Stand::Left, 6, &|_| String::new()),
        column("CONNECTIONS", Stand::Right, u8::MAX, &|node| grouped(node.connections)),
        column("OF MEAN", Stand::Right, 9, &of_mean),
        column("ACCEPTS/S", Stand::Right, 5, &|node| per_second(node.accepts)),
        column("MOVED/S", Stand::Right, 8, &|node| per_second(node.moved)),
        column("REFUSED/S", Stand::Right, 4, &|node| per_second(node.refused)),
        column("ROOM", Stand::Right, 3, &|node| node.room.map_or("-".to_owned(), grouped)),
        column("AGE", Stand::Right, 1, &|node| age(node.age_ms)),
    ];
    // Without rollouts there is nothing to tell apart.
    columns.retain(|column| column.title != "REVISION" || column.cells.iter().any(|cell| !cell.is_empty()));
    columns
}

fn total(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.width + GAP.len()).sum::<usize>().saturating_sub(GAP.len())
}

fn line<'a>(columns: &'a [Column], text: impl Fn(&'a Column) -> &'a str) -> String {
    let cells = columns.iter().map(|column| {
        let text = text(column);
        let space = " ".repeat(column.width.saturating_sub(width(text)));
        match column.stand {
            Stand::Left => format!("{text}{space}"),
            Stand::Right => format!("{space}{text}"),
        }
    });
    cells.collect::<Vec<_>>().join(GAP)
}

/// Who has any connection has at least one cell.
fn bar(connections: u64, most: u64, width: usize) -> String {
    let cells = (connections as f64 / most.max(1) as f64 * width as f64).round() as usize;
    "#".repeat(cells.clamp(usize::from(connections > 0), width))
}

fn name(node: &Node) -> String {
    let name = clean(if node.name.is_empty() { &node.id } else { &node.name });
    if width(&name) <= NAME_WIDTH { name } else { format!("..{}", tail(&name, NAME_WIDTH - 2)) }
}

/// Without anything that a terminal does not show as a character of its own: what begins escape sequences, line ends,
/// marks that change the direction. Names come from other machines.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|character| character.width().is_some_and(|width| width > 0)).collect()
}

fn width(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// The line, broken between words where it does not fit.
fn wrapped(line: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = line;
    while width(rest) > columns {
        let fits = cut(rest, columns).len();
        // A word that fills the line is broken; what is wider than any line is cut off later.
        let end = rest[..fits].rfind(' ').filter(|end| *end > 0).unwrap_or(fits);
        if end == 0 {
            break;
        }
        lines.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    lines.push(rest.to_owned());
    lines
}

/// The beginning that is not wider.
fn cut(text: &str, columns: usize) -> String {
    fitting(text.chars(), columns).collect()
}

/// The end that is not wider.
fn tail(text: &str, columns: usize) -> String {
    let reversed: Vec<char> = fitting(text.chars().rev(), columns).collect();
    reversed.into_iter().rev().collect()
}

fn fitting(characters: impl Iterator<Item = char>, columns: usize) -> impl Iterator<Item = char> {
    let mut used = 0;
    characters.take_while(move |character| {
        used += character.width().unwrap_or(0);
        used <= columns
    })
}

/// A load; where nodes have few connections, parts of one count.
fn load(load: f64) -> String {
    if load < 100.0 { format!("{load:.1}") } else { grouped(load.round() as u64) }
}

fn age(ms: u64) -> String {
    match ms {
        ..10_000 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000.. => format!("{} min", ms / 60_000),
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A number with its thousands separated.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
