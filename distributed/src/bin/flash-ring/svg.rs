//! The figure of what each rank did when.

use serde_json::Value;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 40.0;
const ROW: f64 = 18.0;

/// A lane for compute and one for transfer of each rank, for each pass.
pub fn timeline(answer: &Value) -> String {
    let empty = Vec::new();
    let passes = answer["passes"].as_array().unwrap_or(&empty);
    let mut body = heading(answer);
    let mut top = 54.0;
    for pass in passes {
        let ranks = pass["ranks"].as_array().unwrap_or(&empty);
        let longest = ranks.iter().filter_map(|rank| rank["seconds"].as_f64()).fold(1e-9, f64::max);
        let scale = (WIDTH - LEFT - RIGHT) / longest;
        let title = format!("{}: {:.1} ms", pass["pass"].as_str().unwrap_or(""), 1e3 * longest);
        let _ = writeln!(body, r##"<text x="{LEFT}" y="{:.0}" font-weight="bold">{title}</text>"##, top - 6.0);
        let bottom = top + ranks.len() as f64 * (2.0 * ROW + 8.0);
        axis(&mut body, top, bottom, longest, scale);
        for (rank, record) in ranks.iter().enumerate() {
            for (lane, activity, colour) in [(0.0, "compute", "#2b6cb0"), (1.0, "transfer", "#dd6b20")] {
                let y = top + ROW * lane;
                let _ = writeln!(body, r##"<text x="4" y="{:.1}">rank {rank} {activity}</text>"##, y + 12.0);
                let events = record["events"].as_array().unwrap_or(&empty);
                for event in events.iter().filter(|event| event["activity"] == activity) {
                    bar(&mut body, event, y, scale, colour);
                }
            }
            top += 2.0 * ROW + 8.0;
        }
        top += 50.0;
    }
    let height = top - 20.0;
    let head = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif" font-size="11">
<rect width="{WIDTH}" height="{height:.0}" fill="white"/>
"##
    );
    head + &body + "</svg>\n"
}

/// What was computed, and what the bars are.
fn heading(answer: &Value) -> String {
    let text = |name: &str| answer[name].as_str().unwrap_or("").to_owned();
    let what = [
        format!("{} ranks, {}", answer["ranks"], text("scheme")),
        text("transport"),
        format!("{} tokens", answer["seqlen"]),
        format!("{} heads over {}, head_dim {}", answer["num_heads"], answer["num_heads_kv"], answer["head_dim"]),
        text("element"),
        text("adapter"),
    ];
    let bars =
        "Bars: kernels on the device, and the host waiting for bytes and passing them on. Their numbers are steps.";
    format!(
        r##"<text x="4" y="14" font-weight="bold">{}</text>
<text x="4" y="29">{bars}</text>
"##,
        what.join(", ").replace('&', "&amp;").replace('<', "&lt;"),
    )
}

/// One step, with its number where there is room.
fn bar(body: &mut String, event: &Value, y: f64, scale: f64, colour: &str) {
    let [begin, end] = ["begin", "end"].map(|name| event[name].as_f64().unwrap_or(0.0));
    let (x, width) = (LEFT + begin * scale, ((end - begin) * scale).max(0.5));
    let (height, step, milliseconds) = (ROW - 3.0, &event["step"], 1e3 * (end - begin));
    let _ = writeln!(
        body,
        r##"<rect x="{x:.2}" y="{y:.1}" width="{width:.2}" height="{height}" fill="{colour}"><title>step {step}: {milliseconds:.2} ms</title></rect>"##,
    );
    if width > 14.0 {
        let (x, y) = (x + width / 2.0, y + 11.5);
        let _ = writeln!(body, r##"<text x="{x:.1}" y="{y:.1}" text-anchor="middle" fill="white">{step}</text>"##);
    }
}

/// Marks at round numbers of milliseconds, ten at most.
fn axis(body: &mut String, top: f64, bottom: f64, longest: f64, scale: f64) {
    let least = 1e3 * longest / 10.0;
    let decade = 10f64.powf(least.log10().floor());
    let distance = [1.0, 2.0, 5.0, 10.0].map(|times| times * decade).into_iter().find(|distance| *distance >= least);
    let distance = distance.unwrap_or(least);
    let digits = (-distance.log10().floor()).clamp(0.0, 6.0) as usize;
    for mark in 0..=(1e3 * longest / distance) as u32 {
        let milliseconds = f64::from(mark) * distance;
        let x = LEFT + milliseconds * 1e-3 * scale;
        let _ = writeln!(
            body,
            r##"<line x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}" stroke="#ddd"/>
<text x="{x:.1}" y="{:.1}" text-anchor="middle">{milliseconds:.digits$}{}</text>"##,
            bottom + 12.0,
            if mark == 0 { " ms" } else { "" },
        );
    }
}
