//! The one text transform: `// unroll N in LIST {` … `// }`.
//!
//! The lines between are repeated for each entry of the list. The variable is replaced in every identifier in which it is a
//! whole part between underscores. With entry 2, `o_N` becomes `o_2`, and `N` alone becomes `2u`. Lists may hold names too:
//! with entry `q`, `load_TENSOR` becomes `load_q`. Several variables in one directive are nested loops, the first
//! outermost: `// unroll N in ROWS, E in KEYS {`. The name of a list may contain a variable of an outer loop:
//! `// unroll W in WIDTHS, TENSOR in TENSORS_W {`.
//!
//! It exists because WGSL cannot index registers. A loop over a private array is 6.6 times slower in a checked module (f32
//! forward, NVIDIA H200).

use std::borrow::Cow;
use std::collections::HashMap;

/// What the lists of a text hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists(HashMap<&'static str, List>);

#[derive(Clone, Debug)]
enum List {
    Count(u32),
    Names(Vec<&'static str>),
}

impl Lists {
    pub(super) fn count(&mut self, name: &'static str, count: u32) {
        self.0.insert(name, List::Count(count));
    }

    pub(super) fn names(&mut self, name: &'static str, names: Vec<&'static str>) {
        self.0.insert(name, List::Names(names));
    }
}

impl List {
    /// For each entry: its spelling alone, and as part of an identifier.
    fn entries(&self) -> Vec<(String, String)> {
        match self {
            List::Count(count) => (0..*count).map(|i| (format!("{i}u"), i.to_string())).collect(),
            List::Names(names) => names.iter().map(|name| (name.to_string(), name.to_string())).collect(),
        }
    }
}

/// Numbered lines; an error is a line and a message.
pub(super) type Lines<'a> = Vec<(u32, Cow<'a, str>)>;

pub(super) fn unroll<'a>(text: &'a str, lists: &Lists) -> Result<Lines<'a>, (u32, String)> {
    let lines: Lines = (1..).zip(text.lines().map(Cow::Borrowed)).collect();
    expand(&lines, lists)
}

fn expand<'a>(lines: &[(u32, Cow<'a, str>)], lists: &Lists) -> Result<Lines<'a>, (u32, String)> {
    let mut result = Vec::with_capacity(lines.len());
    let mut at = 0;
    while at < lines.len() {
        let (number, line) = &lines[at];
        if let Some(directive) = line.trim().strip_prefix("// unroll ") {
            let (variable, list, inner) = parse(directive).ok_or_else(|| {
                (
                    *number,
                    format!("'// unroll {directive}': expected '// unroll VARIABLE in LIST, VARIABLE in LIST {{'"),
                )
            })?;
            let list =
                lists.0.get(list).ok_or_else(|| (*number, format!("there is no list '{list}' to unroll over here")))?;
            let end = closing(lines, at).ok_or_else(|| (*number, "this unroll is never closed by '// }'".into()))?;
            // The other variables are a loop inside.
            let mut body: Lines = lines[at + 1..end].to_vec();
            if let Some(inner) = inner {
                body.insert(0, (*number, format!("// unroll {inner}").into()));
                body.push((*number, "// }".into()));
            }
            for (alone, part) in list.entries() {
                let turn: Lines = body
                    .iter()
                    .map(|(number, line)| (*number, Cow::Owned(substitute(line, variable, &alone, &part))))
                    .collect();
                result.extend(expand(&turn, lists)?);
            }
            at = end + 1;
        } else if line.trim() == "// }" {
            return Err((*number, "'// }' closes no unroll".into()));
        } else {
            result.push(lines[at].clone());
            at += 1;
        }
    }
    Ok(result)
}

/// The first variable of a directive and its list; the other variables, if there are any.
fn parse(directive: &str) -> Option<(&str, &str, Option<&str>)> {
    let (first, inner) = match directive.split_once(',') {
        Some((first, inner)) => (first, Some(inner.trim())),
        None => (directive.trim().strip_suffix('{')?, None),
    };
    let words: Vec<&str> = first.split_whitespace().collect();
    match words[..] {
        [variable, "in", list] => Some((variable, list, inner)),
        _ => None,
    }
}

/// The index of the `// }` that closes the directive at `open`.
fn closing(lines: &[(u32, Cow<str>)], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, (_, line)) in lines.iter().enumerate().skip(open) {
        if line.trim().starts_with("// unroll ") {
            depth += 1;
        } else if line.trim() == "// }" {
            depth -= 1;
            if depth == 0 {
                return Some(index);
            }
        }
    }
    None
}

fn substitute(line: &str, variable: &str, alone: &str, part: &str) -> String {
    // Directives inside keep their variables, which are substituted when they are expanded themselves; the names of their
    // lists may hold this one.
    if let Some(directive) = line.trim().strip_prefix("// unroll ") {
        let loops = directive.split(',').map(|inner| match inner.split_once(" in ") {
            Some((name, list)) => format!("{name} in {}", substitute(list, variable, part, part)),
            None => inner.into(),
        });
        return format!("// unroll {}", loops.collect::<Vec<_>>().join(","));
    }
    let mut result = String::with_capacity(line.len() + 8);
    let mut rest = line;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        result.push_str(&rest[..start]);
        let identifier = &rest[start..];
        let end = identifier.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(identifier.len());
        let (identifier, after) = identifier.split_at(end);
        if identifier == variable {
            result.push_str(alone);
        } else {
            for (index, piece) in identifier.split('_').enumerate() {
                if index > 0 {
                    result.push('_');
                }
                result.push_str(if piece == variable { part } else { piece });
            }
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Lists {
        let mut lists = Lists::default();
        lists.count("ROWS", 2);
        lists.count("NONE", 0);
        lists.names("INPUTS", vec!["q", "k"]);
        lists
    }

    fn text(source: &str) -> String {
        let lines = unroll(source, &lists()).unwrap();
        lines.iter().map(|(_, line)| line.trim()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn numbers_stand_alone_and_inside_identifiers() {
        assert_eq!(
            text("// unroll N in ROWS {\n  let o_N = N + ROWS_N_x;\n// }"),
            "let o_0 = 0u + ROWS_0_x;\nlet o_1 = 1u + ROWS_1_x;"
        );
    }

    #[test]
    fn names_and_nesting() {
        let source = "// unroll TENSOR in INPUTS {\n// unroll N in ROWS {\nload_TENSOR(TENSOR_N);\n// }\n// }";
        assert_eq!(text(source), "load_q(q_0);\nload_q(q_1);\nload_k(k_0);\nload_k(k_1);");
    }

    #[test]
    fn several_variables_are_nested_loops_with_the_first_outermost() {
        let nested = "// unroll TENSOR in INPUTS {\n// unroll N in ROWS {\nload_TENSOR(TENSOR_N, N);\n// }\n// }";
        let joined = "// unroll TENSOR in INPUTS, N in ROWS {\n  load_TENSOR(TENSOR_N, N);\n// }";
        assert_eq!(text(joined), "load_q(q_0, 0u);\nload_q(q_1, 1u);\nload_k(k_0, 0u);\nload_k(k_1, 1u);");
        assert_eq!(text(joined), text(nested));
        assert_eq!(text("a\n// unroll N in ROWS, M in NONE {\nb\n// }\nc"), "a\nc");
        assert_eq!(
            text("// unroll N in ROWS, M in ROWS {\n// unroll E in ROWS {\nN_M_E\n// }\n// }").lines().count(),
            8
        );
    }

    #[test]
    fn names_of_lists_may_hold_variables_of_loops_around_them() {
        let mut lists = lists();
        lists.names("WIDTHS", vec!["K", "V"]);
        lists.names("TENSORS_K", vec!["q"]);
        lists.names("TENSORS_V", vec!["d_o"]);
        let text = |source: &str| {
            let lines = unroll(source, &lists).unwrap();
            lines.iter().map(|(_, line)| line.trim()).collect::<Vec<_>>().join("\n")
        };
        let joined = "// unroll W in WIDTHS, TENSOR in TENSORS_W {\n  TENSOR_tile[W_STRIDE]\n// }";
        assert_eq!(text(joined), "q_tile[K_STRIDE]\nd_o_tile[V_STRIDE]");
        let nested = "// unroll W in WIDTHS {\n// unroll TENSOR in TENSORS_W {\nTENSOR_tile[W_STRIDE]\n// }\n// }";
        assert_eq!(text(joined), text(nested));
    }

    #[test]
    fn other_identifiers_and_literals_are_left_alone() {
        assert_eq!(text("// unroll N in ROWS {\nNN nN 0xN\n// }"), "NN nN 0xN\nNN nN 0xN");
        assert_eq!(text("a\n// unroll N in NONE {\nb\n// }\nc"), "a\nc");
    }

    #[test]
    fn lines_keep_their_numbers() {
        let numbers: Vec<u32> =
            unroll("a\n// unroll N in ROWS {\nb\n// }\nc", &lists()).unwrap().iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [1, 3, 3, 5]);
    }

    #[test]
    fn mistakes_are_errors() {
        for (source, line, part) in [
            ("x\n// unroll N in ROWS {\ny", 2, "never closed"),
            ("// }", 1, "closes no unroll"),
            ("// unroll N in MISSING {\n// }", 1, "no list 'MISSING'"),
            ("// unroll N of ROWS {\n// }", 1, "expected"),
            ("// unroll N in ROWS, {\n// }", 1, "expected"),
            ("// unroll N in ROWS M in ROWS {\n// }", 1, "expected"),
            ("// unroll N in ROWS\n// }", 1, "expected"),
            ("// unroll N in ROWS, M in MISSING {\n// }", 1, "no list 'MISSING'"),
        ] {
            let (found, message) = unroll(source, &lists()).unwrap_err();
            assert_eq!(found, line);
            assert!(message.contains(part), "{message}");
        }
    }

    /// Whatever the text is, its lines are those of the text, or the error is at one of them.
    #[test]
    fn any_text_is_unrolled_or_refused() {
        use proptest::prelude::*;
        use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

        const PIECES: [&str; 16] = [
            "// unroll N in ROWS {",
            "// unroll M in INPUTS, N in ROWS {",
            "// unroll N in NONE {",
            "// unroll N in ROWS_N {",
            "// unroll ",
            "// }",
            "// } ",
            "  // }",
            "let o_N = N;",
            "N_M_",
            "_",
            "{",
            "",
            "é_N",
            "N,",
            "//",
        ];
        let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let texts = prop::collection::vec((0..PIECES.len(), any::<bool>()), 0..16);
        let outcome = runner.run(&texts, |pieces| {
            let pieces = pieces.iter().map(|(piece, ends)| PIECES[*piece].to_owned() + if *ends { "\n" } else { "" });
            let text: String = pieces.collect();
            let count = text.lines().count().max(1) as u32;
            match unroll(&text, &lists()) {
                Ok(lines) => prop_assert!(
                    lines.iter().all(|(number, line)| (1..=count).contains(number) && line.trim() != "// }"),
                    "{lines:?}"
                ),
                Err((line, message)) => prop_assert!((1..=count).contains(&line) && !message.is_empty(), "{line}"),
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}
