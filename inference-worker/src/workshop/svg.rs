//! Pictures for reports: plain SVG text without scripts, fonts or references, so that it can stand in any page.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;

/// Colours of the first and the second series, and of marks.
const COLORS: [&str; 3] = ["#1f6feb", "#b0b7c3", "#c62828"];

/// Two sets of bars over one axis.
pub struct Bars<'a> {
    /// Title.
    pub title: &'a str,
    /// Axis from, to.
    pub range: (f64, f64),
    /// Name and heights (shares) of each series; both have one number of bins. The second is drawn behind.
    pub series: [(&'a str, &'a [f64]); 2],
    /// Vertical lines with names.
    pub marks: &'a [(f64, String)],
}

/// One curve of a plot.
pub struct Curve<'a> {
    /// Name.
    pub name: &'a str,
    /// Points, x rising; what is not finite is left out.
    pub points: &'a [(f64, f64)],
}

/// Curves over steps.
pub struct Plot<'a> {
    /// Title.
    pub title: &'a str,
    /// Name of the x axis.
    pub x: &'a str,
    /// The curves, at most as many as there are colours.
    pub curves: &'a [Curve<'a>],
    /// Horizontal lines with names.
    pub marks: &'a [(f64, String)],
}

/// Draws bars; heights are drawn as square roots, so that a tail of one per cent can be seen.
pub fn bars(chart: &Bars<'_>) -> String {
    let (from, to) = chart.range;
    let x = |value: f64| LEFT + (value - from) / (to - from).max(1e-12) * (WIDTH - LEFT - RIGHT);
    let top = chart.series.iter().flat_map(|s| s.1.iter().copied()).fold(1e-9, f64::max).sqrt();
    let y = |share: f64| HEIGHT - BOTTOM - share.max(0.0).sqrt() / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(chart.title);
    for (color, (_, shares)) in [COLORS[1], COLORS[0]].iter().zip(chart.series.iter().rev()) {
        let width = (x(to) - x(from)) / shares.len().max(1) as f64;
        for (i, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let (left, height) = (x(from) + i as f64 * width, HEIGHT - BOTTOM - y(*share));
            let _ = writeln!(
                svg,
                r#"<rect x="{left:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" fill="{color}" fill-opacity="0.8"/>"#,
                y(*share),
                (width - 1.0).max(0.5)
            );
        }
    }
    for share in [0.01, 0.1, 0.5] {
        if f64::sqrt(share) < top {
            label(&mut svg, LEFT - 6.0, y(share) + 4.0, "end", &format!("{:.0} %", share * 100.0));
        }
    }
    axis(&mut svg, from, to, &x);
    for (i, (value, name)) in chart.marks.iter().enumerate() {
        let place = x(*value);
        line(&mut svg, (place, TOP), (place, HEIGHT - BOTTOM), COLORS[2]);
        label(&mut svg, place - 4.0, TOP + 12.0 + 14.0 * i as f64, "end", name);
    }
    legend(&mut svg, chart.series.iter().map(|s| s.0));
    svg + "</svg>\n"
}

/// Draws curves.
pub fn plot(chart: &Plot<'_>) -> String {
    let points = || chart.curves.iter().flat_map(|c| c.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let range = |of: &dyn Fn(&(f64, f64)) -> f64, more: &[f64]| {
        let all = points().map(of).chain(more.iter().copied());
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high { (0.0, 1.0) } else { (low, if high > low { high } else { low + 1.0 }) }
    };
    let marks: Vec<f64> = chart.marks.iter().map(|m| m.0).collect();
    let ((x0, x1), (y0, y1)) = (range(&|p| p.0, &[]), range(&|p| p.1, &marks));
    let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(chart.title);
    axis(&mut svg, x0, x1, &x);
    label(&mut svg, WIDTH / 2.0, HEIGHT - 6.0, "middle", chart.x);
    for i in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(i) / 4.0;
        label(&mut svg, LEFT - 6.0, y(value) + 4.0, "end", &number(value, y1 - y0));
    }
    for (value, name) in chart.marks {
        line(&mut svg, (LEFT, y(*value)), (WIDTH - RIGHT, y(*value)), COLORS[2]);
        label(&mut svg, WIDTH - RIGHT - 4.0, y(*value) - 4.0, "end", name);
    }
    for (curve, color) in chart.curves.iter().zip(COLORS) {
        let path: Vec<String> = curve
            .points
            .iter()
            .filter(|p| p.0.is_finite() && p.1.is_finite())
            .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
            .collect();
        let _ =
            writeln!(svg, r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="1.5"/>"#, path.join(" "));
    }
    legend(&mut svg, chart.curves.iter().map(|c| c.name));
    svg + "</svg>\n"
}

fn open(title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#444\"><title>{title}</title>\n\
         <text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}</text>\n"
    )
}

fn axis(svg: &mut String, from: f64, to: f64, x: &dyn Fn(f64) -> f64) {
    line(svg, (x(from), HEIGHT - BOTTOM), (x(to), HEIGHT - BOTTOM), "#444");
    for i in 0..=5 {
        let value = from + (to - from) * f64::from(i) / 5.0;
        label(svg, x(value), HEIGHT - BOTTOM + 16.0, "middle", &number(value, to - from));
    }
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    let mut place = WIDTH - RIGHT - 260.0;
    for (name, color) in names.zip(COLORS) {
        let _ = writeln!(svg, r#"<rect x="{place}" y="7" width="10" height="10" fill="{color}"/>"#);
        label(svg, place + 14.0, 16.0, "start", name);
        place += 24.0 + 6.5 * name.len() as f64;
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    // Writing to a String cannot fail.
    let _ = writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{color}"/>"#);
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escape(text));
}

/// As many digits as tell a fifth of the range.
fn number(value: f64, range: f64) -> String {
    let digits = (1.5 - range.abs().max(1e-9).log10()).ceil().clamp(0.0, 5.0) as usize;
    format!("{value:.digits$}")
}

/// Text for XML and HTML.
pub fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        let marks = [(0.5, "<b>&\"".to_owned())];
        let series = [("a<i>", &[0.5, 0.5][..]), ("b", &[1.0, 0.0][..])];
        let svg = bars(&Bars { title: "t<script>", range: (0.0, 1.0), series, marks: &marks });
        assert!(!svg.contains("<script") && !svg.contains("<b>") && !svg.contains("<i>"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3 + 2, "an empty bin has no bar; two keys of the legend");
    }

    #[test]
    fn a_plot_of_nothing_and_of_one_point_is_a_picture_without_nan() {
        for points in [&[][..], &[(1.0, 2.0)], &[(1.0, f64::NAN), (2.0, 3.0)]] {
            let svg = plot(&Plot { title: "t", x: "step", curves: &[Curve { name: "c", points }], marks: &[] });
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
