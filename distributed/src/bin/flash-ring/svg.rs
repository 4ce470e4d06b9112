//! The figure of what each rank did when.

use serde_json::Value;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const ROW: f64 = 18.0;

/// A lane for compute and one for transfer of each rank, for each pass.
pub fn timeline(answer: &Value) -> String {
    let empty = Vec::new();
    let passes = answer["passes"].as_array().unwrap_or(&empty);
    let mut body = String::new();
    let mut top = 34.0;
    for pass in passes {
        let ranks = pass["ranks"].as_array().unwrap_or(&empty);
        let longest = ranks.iter().filter_map(|rank| rank["seconds"].as_f64()).fold(1e-9, f64::max);
        let scale = (WIDTH - LEFT - 20.0) / longest;
        let title = format!("{}: {:.1} ms", pass["pass"].as_str().unwrap_or(""), 1e3 * longest);
        let _ = writeln!(body, r##"<text x="{LEFT}" y="{:.0}" font-weight="bold">{title}</text>"##, top - 6.0);
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
        axis(&mut body, top, longest, scale);
        top += 56.0;
    }
    let head = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0}" font-family="sans-serif" font-size="11">
<rect width="{WIDTH}" height="{top:.0}" fill="white"/>
"##
    );
    head + &body + "</svg>\n"
}

fn bar(body: &mut String, event: &Value, y: f64, scale: f64, colour: &str) {
    let [begin, end] = ["begin", "end"].map(|name| event[name].as_f64().unwrap_or(0.0));
    let (x, width) = (LEFT + begin * scale, ((end - begin) * scale).max(0.5));
    let (height, step) = (ROW - 3.0, &event["step"]);
    let _ = writeln!(
        body,
        r##"<rect x="{x:.2}" y="{y:.1}" width="{width:.2}" height="{height}" fill="{colour}"><title>step {step}: {:.2} ms</title></rect>"##,
        1e3 * (end - begin)
    );
}

/// Four marks in milliseconds.
fn axis(body: &mut String, y: f64, longest: f64, scale: f64) {
    for mark in 0..=4 {
        let seconds = longest * f64::from(mark) / 4.0;
        let x = LEFT + seconds * scale;
        let _ = writeln!(
            body,
            r##"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{:.1} ms</text>"##,
            y + 12.0,
            1e3 * seconds
        );
    }
}
