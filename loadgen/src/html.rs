//! The report as one HTML page: the table, and plots as inline SVG. It loads nothing from anywhere.

use std::fmt::Write;

/// Width of a plot's drawing area.
const WIDTH: f64 = 900.0;
/// Its height.
const HEIGHT: f64 = 180.0;
/// Room for the numbers beside and below it.
const MARGIN: f64 = 60.0;
/// Colours of the series, in turn; they differ in brightness too.
const COLOURS: [&str; 4] = ["#1f5fa8", "#d1731b", "#2f8f4e", "#8a2f6b"];

/// Values over the seconds of a run.
pub struct Plot {
    /// What is shown.
    pub title: &'static str,
    /// Name and values of each line.
    pub series: Vec<(&'static str, Vec<f64>)>,
}

/// The page.
pub fn page(title: &str, rows: &[(String, String)], plots: &[Plot]) -> String {
    let mut out = String::new();
    let title = escape(title);
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<title>{title}</title><style>body{{font:15px/1.4 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}}\
         table{{border-collapse:collapse}}td{{border-top:1px solid #ccc;padding:.3em .8em;vertical-align:top;\
         white-space:pre-wrap}}td:first-child{{font-weight:600}}svg{{width:100%;height:auto}}</style></head>\
         <body><h1>{title}</h1>\n<table>"
    );
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value));
    }
    out.push_str("</table>\n");
    plots.iter().for_each(|plot| draw(plot, &mut out));
    out.push_str("</body></html>\n");
    out
}

fn draw(plot: &Plot, out: &mut String) {
    let seconds = plot.series.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let top = plot.series.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
    if seconds < 2 {
        return;
    }
    let scale = if top > 0.0 { HEIGHT / top } else { 0.0 };
    let x = |second: usize| MARGIN + second as f64 * WIDTH / (seconds - 1) as f64;
    let (right, bottom, legend) = (MARGIN + WIDTH, HEIGHT + 10.0, HEIGHT + 30.0);
    let (width, height) = (right + 10.0, HEIGHT + 40.0);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<h2>{}</h2>\n<svg viewBox=\"0 0 {width} {height}\" role=\"img\" font-size=\"13\">\
         <path d=\"M{MARGIN} 10V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\
         <text x=\"{MARGIN}\" y=\"20\" dx=\"-6\" text-anchor=\"end\">{}</text>\
         <text x=\"{MARGIN}\" y=\"{bottom}\" dx=\"-6\" text-anchor=\"end\">0</text>\
         <text x=\"{right}\" y=\"{legend}\" text-anchor=\"end\">{} s</text>",
        escape(plot.title),
        number(top),
        seconds - 1
    );
    for (index, (name, values)) in plot.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(second, value)| format!("{:.1},{:.1}", x(second), bottom - value * scale))
            .collect();
        let place = MARGIN + index as f64 * 180.0;
        let _ = write!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{place}\" y=\"{legend}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            escape(name)
        );
    }
    out.push_str("</svg>\n");
}

/// A number beside an axis; of small ones that are not whole the parts count.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_rows_and_lines_and_loads_nothing() {
        let rows = [("a <b>".to_owned(), "1 & 2".to_owned())];
        let plot =
            Plot { title: "accepts", series: vec![("per second", vec![0.0, 5.0, 10.0]), ("flat", vec![0.0; 3])] };
        let page = page("storm", &rows, &[plot]);
        assert!(page.contains("<td>a &lt;b&gt;</td><td>1 &amp; 2</td>"), "{page}");
        assert!(page.contains("points=\"60.0,190.0 510.0,100.0 960.0,10.0\""), "{page}");
        assert_eq!(page.matches("<polyline").count(), 2);
        assert!(!page.contains("http") && !page.contains("src="), "{page}");
    }

    #[test]
    fn small_numbers_beside_an_axis_have_parts() {
        assert_eq!([1.8, 2.0, 10.6].map(number), ["1.80", "2", "11"]);
    }

    #[test]
    fn what_has_no_values_is_left_out() {
        let mut out = String::new();
        draw(&Plot { title: "none", series: vec![("x", vec![1.0])] }, &mut out);
        draw(&Plot { title: "none", series: Vec::new() }, &mut out);
        assert_eq!(out, "");
    }
}
