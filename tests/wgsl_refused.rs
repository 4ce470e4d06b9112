//! Texts in the caller's own WGSL that are refused, each at its line: malformed, hostile, or not what was asked for. And texts
//! that are not.

use wgpu_flash_attention::unstable::fault_in_browsers;
use wgpu_flash_attention::{AuxType, MaskWgsl, ScoreWgsl, WgslFault, WgslOptions};

const SCORE: &str = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32";

/// A text whose score_mod is line 1, and whose body starts at line 2.
fn with_body(body: &str) -> String {
    format!("{SCORE} {{\n{body}\n}}\n")
}

/// A text with these declarations before its score_mod.
fn with_globals(globals: &str) -> String {
    format!("{globals}\n{SCORE} {{ return score; }}\n")
}

fn refused(text: &str) -> WgslFault {
    match ScoreWgsl::new(text) {
        Err(fault) => fault,
        Ok(_) => panic!("this is not refused:\n{text}"),
    }
}

/// Refused here, and in browsers, where the text's tokens are all that is known.
#[track_caller]
fn expect(text: &str, line: u32, column: u32, message: &str) {
    expect_of_compiler(text, line, column, message);
    match fault_in_browsers("score_mod", text) {
        Some(fault) => assert_eq!(fault.line(), line, "{fault}"),
        None => panic!("browsers do not refuse this:\n{text}"),
    }
}

/// What the compiler says of itself, with its own numbers and notes, is said in plain words, at the line where it is.
#[test]
fn the_compilers_words_are_made_plain() {
    let aux = "; aux is read as f32, which WgslOptions::with_aux or the tensor's type says";
    let of_aux = |words: &str| format!("{words}{aux}");
    let index = "; an index is one i32 or u32: convert it, as u32(x)";
    let one_type = "; both sides must have one type: convert one, as";
    let select = "the first two arguments of select must have one type: select(if_false, if_true, condition)";
    let ends = "this function can end without a value; it declares -> f32, so each way through it must end with return";
    let past = |n: u32| format!("index {n} is past the end; the first entry has index 0");
    let cases: &[(&str, u32, String)] = &[
        // Indices and values of aux.
        ("return score +\n aux[score];", 3, format!("this index of aux is f32{index}")),
        ("return aux[kv_idx > 1u];", 2, format!("this index of aux is bool{index}")),
        ("return aux[vec2(1u, 2u)];", 2, format!("this index of aux is vec2<u32>{index}")),
        ("let a = 1.0;\nreturn aux[kv_idx][q_idx];", 3, "an entry of aux is one number".into()),
        ("let n: u32 = aux[0];\nreturn score;", 2, "n is declared as u32, and its value is f32; convert it".into()),
        (
            "if aux[q_idx] == 1u { return 0.0; }\nreturn score;",
            2,
            of_aux(&format!("== is between f32 and u32{one_type} f32(x)")),
        ),
        ("return f32(aux[0] & 1u);", 2, of_aux("& is between f32 and u32; it is for two i32, two u32 or two bool")),
        ("aux[q_idx] = 1.0;\nreturn score;", 2, "this cannot be written to".into()),
        // Ways without return.
        ("let a = score;", 1, ends.into()),
        ("if score > 1.0 { return 1.0; }", 1, ends.into()),
        ("switch kv_idx { case 1u: { return 1.0; } default: { } }", 1, ends.into()),
        ("for (var i = 0; i < 4; i++) { return 1.0; }", 1, ends.into()),
        ("let a = score;\nreturn;", 3, "this function declares -> f32: return a value".into()),
        // Results and conditions, of which some name a parameter, which is declared elsewhere.
        (
            "let a = 1;\nreturn kv_idx;",
            3,
            "this is u32, and the function declares -> f32; convert it, as f32(x)".into(),
        ),
        ("return score > 1.0;", 2, "this is bool, and the function declares -> f32; convert it, as f32(x)".into()),
        ("return vec2(score, score);", 2, "this is vec2<f32>, and the function declares -> f32".into()),
        (
            "let a = 1;\nif kv_idx { return 1.0; }\nreturn score;",
            3,
            "this condition is u32; a condition is bool".into(),
        ),
        ("let a = 1;\nwhile score { }\nreturn score;", 3, "this condition is f32; a condition is bool".into()),
        // Indices past the end.
        ("let v = vec2(1.0, 2.0);\nlet w = v[1];\nreturn v[2];\n", 4, past(2)),
        ("var v = vec3(1.0);\nif score > 1.0 {\nv[7] = 1.0;\n}\nreturn v.x;", 4, past(7)),
        ("let a = array<f32, 2>(1.0, 2.0);\nreturn a[2];", 3, past(2)),
        ("let m = mat2x2<f32>(1.0, 2.0, 3.0, 4.0);\nreturn m[1].x +\nm[2].x;", 4, past(2)),
        ("let v = vec2(1.0, 2.0);\nreturn v[-1];", 3, "this index is negative; the first entry has index 0".into()),
        ("let a = 1.0;\nreturn score[0];", 3, "this value has no entries".into()),
        ("return score.x;", 2, "there is no x in this value".into()),
        // Types that do not meet.
        ("return score + kv_idx;", 2, format!("+ is between f32 and u32{one_type} f32(x)")),
        ("return f32(i32(q_idx) - kv_idx);", 2, format!("- is between i32 and u32{one_type} i32(x)")),
        ("return f32(-kv_idx);", 2, "- does not work on u32; convert it to i32 or f32 first".into()),
        ("if !kv_idx { return 1.0; }\nreturn score;", 2, "! does not work on u32; it is for bool".into()),
        (
            "let a = 1.0;\nif kv_idx && q_idx > 1 { return 1.0; }\nreturn score;",
            3,
            "&& and || need bool on both sides".into(),
        ),
        ("return aux[kv_idx + 1.0];", 2, "this number meets a value of another type".into()),
        ("return sqrt(kv_idx);", 2, "argument 1 of sqrt must be f32 or a vector of it; convert it, as f32(x)".into()),
        ("return dot(score, score);", 2, "argument 1 of dot must be a vector of f32, i32, u32".into()),
        ("return max(score, kv_idx);", 2, "argument 2 of max must have the type of argument 1, f32".into()),
        ("return select(score > 1.0, score, 0.0);", 2, select.into()),
        ("return select(score, 1.0, kv_idx);", 2, "the last argument of select is u32, and must be bool".into()),
        ("let v = vec2<f32>(kv_idx, 1.0);\nreturn v.x;", 2, "value 1 has another type than is needed here".into()),
        // Constants that the compiler computes: "see msg".
        ("return score * 1e40;", 2, "f32 cannot hold the number 1e40".into()),
        ("return 1.0 / 0.0;", 2, "the value of this is too large for its type".into()),
        ("return f32(1u << 40u);", 2, "a number of 32 bits can be shifted by 0 to 31".into()),
        ("return sqrt(-1.0);", 2, "sqrt built-in function argument is out of valid range".into()),
        ("let v = vec3(1.0, 2.0);\nreturn v.x;", 2, "Constructor expects 3 components, found 2".into()),
        // Habits of other languages.
        ("return score > 1.0 ? 1.0 : 0.0;", 2, "WGSL has no ? and :; use select(if_false, if_true, condition)".into()),
        ("return score ** 2.0;", 2, "WGSL has no **; use pow(x, y)".into()),
        (
            "float a = 1.0;\nreturn a;",
            2,
            "this is no statement; variables are declared as let x = … or var x = …".into(),
        ),
        ("switch kv_idx {\ncase 1u: { return 1.0; }\n}\nreturn score;", 2, "this switch has no default".into()),
    ];
    for (body, line, message) in cases {
        let fault = refused(&with_body(body));
        assert_eq!(fault.line(), *line, "{body}: {fault}");
        assert!(fault.message().contains(message), "{body}: {fault}");
        for word in ["see msg", "Scalar", "Some(", "None", "allowed type", "[0]", "[1]"] {
            assert!(!fault.message().contains(word), "{body}: {fault}");
        }
    }
    for (text, line, message) in [
        (with_globals("fn f(x: f32) -> f32 {\n let y = x;\n}"), 1, ends),
        (
            with_globals("const a = 1;\nfn f(x: f32) {\n return x;\n}"),
            3,
            "this function returns a value and declares none",
        ),
        (
            "fn f(a: f32) -> f32 { return a; }\n".to_owned() + &with_body("return f(kv_idx);"),
            3,
            "argument 1 of f is u32, and must be f32",
        ),
        // A function that stands below.
        (
            with_body("let v = vec2(1.0, 2.0);\nreturn v[2] + f(1.0);") + "fn f(a: f32) -> f32 { return a; }",
            3,
            "index 2 is past the end",
        ),
    ] {
        let fault = refused(&text);
        assert!(fault.line() == line && fault.message().contains(message), "{fault}");
    }
}

/// A text that takes some drivers minutes to compile: their time grows with the square of its branches.
#[test]
fn too_many_branches() {
    let cases = |count: usize| {
        let cases: String = (0..count).map(|n| format!("case {n}u: {{ return {n}.5; }}\n")).collect();
        with_body(&format!("switch kv_idx {{\n{cases}default: {{ return score; }}\n}}"))
    };
    let reason =
        "branches (an if and a return 1, a case and a loop 2), at most 384 are allowed; put the table into aux";
    taken(&cases(120));
    expect(&cases(1500), 1, 1, reason);
    expect(&cases(130), 1, 1, reason);
    let of_one: String = (0..80).map(|n| format!("case {n}u, {}u, {}u: {{ }}\n", n + 100, n + 200)).collect();
    expect(&with_body(&format!("switch kv_idx {{\n{of_one}default: {{ }}\n}}\nreturn score;")), 1, 1, reason);
    let ifs = |count: usize, body: &str| format!("if kv_idx == 7u {{ {body} }}\n").repeat(count) + "return score;";
    taken(&with_body(&ifs(380, "")));
    expect(&with_body(&ifs(400, "")), 1, 1, reason);
    expect(&with_body(&ifs(200, "return 1.0;")), 1, 1, reason);
    let helper = format!("fn f(kv_idx: u32, score: f32) -> f32 {{\n{}\n}}", ifs(150, ""));
    taken(&(helper.clone() + &with_body("return f(kv_idx, score) + f(kv_idx, 1.0);")));
    let thrice = helper + &with_body("return f(kv_idx, score) + f(kv_idx, 1.0) + f(kv_idx, 2.0);");
    expect(&thrice, 153, 2, reason);
    let loops = "for (var i = 0u; i < 3u; i++) { }\n".repeat(130) + "return score;";
    expect(&with_body(&loops), 1, 1, reason);
    // What the library writes into loops and beside aux counts nothing.
    taken(&with_body(&("for (var i = 0u; i < 3u; i++) { }\n".repeat(120) + "return score;")));
    let sums = with_body(&("var s = score;\n".to_owned() + &"s += aux[kv_idx];\n".repeat(1_500) + "return s;"));
    ScoreWgsl::new(&sums).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Refused here. In browsers, their compiler does it.
#[track_caller]
fn expect_of_compiler(text: &str, line: u32, column: u32, message: &str) {
    let fault = refused(text);
    assert_eq!((fault.line(), fault.column()), (line, column), "{fault}");
    assert!(fault.message().contains(message), "{fault}");
}

/// Taken, here and in browsers.
#[track_caller]
fn taken(text: &str) -> ScoreWgsl {
    if let Some(fault) = fault_in_browsers("score_mod", text) {
        panic!("browsers refuse this: {fault}");
    }
    ScoreWgsl::new(text).unwrap_or_else(|fault| panic!("{fault}"))
}

#[test]
fn wrong_or_missing_signatures() {
    let written = "fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32";
    expect("", 1, 1, "there is no score_mod; write fn score_mod(");
    expect("fn scoremod() {}", 1, 1, "there is no score_mod");
    expect("const score_mod = 1.0;", 1, 1, "there is no score_mod");
    expect("\nfn score_mod(score: f32) -> f32 { return score; }", 2, 1, written);
    expect(&with_body("return score;").replace("-> f32", "").replace("return score;", ""), 1, 1, written);
    expect(&with_body("return score;").replace("kv_idx: u32", "kv_idx: i32"), 1, 1, written);
    let gradient = with_body("return score;") + "fn score_mod_grad(grad: f32, score: f32) -> f32 { return grad; }";
    expect(&gradient, 4, 1, "fn score_mod_grad(grad: f32, score: f32, batch");
    let alone = "fn score_mod_grad(grad: f32, score: f32, b: u32, h: u32, q: u32, k: u32) -> f32 { return grad; }";
    expect(alone, 1, 1, "there is no score_mod");
    let mask = MaskWgsl::new("fn mask_mod(batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 { return 1.0; }");
    assert!(mask.unwrap_err().message().contains("-> bool"));
    assert_eq!(MaskWgsl::new(&with_body("return score;")).unwrap_err().function(), "mask_mod");
}

#[test]
fn malformed_texts() {
    expect_of_compiler(&with_body("return scores;"), 2, 8, "no definition in scope for identifier: `scores`");
    expect_of_compiler(&with_body("return score"), 3, 1, "expected `;`");
    expect_of_compiler(&with_body("return 1u;"), 2, 8, "this is u32, and the function declares -> f32");
    expect_of_compiler(&with_body("let a = 1;\nlet b = 2u;\nreturn a + b + score;"), 4, 8, "");
    expect_of_compiler(&with_body("return f32(1 / 0);"), 2, 12, "Division by zero");
    expect_of_compiler(&with_body("return aux[-1];"), 2, 8, "negative");
    expect_of_compiler(&with_body("aux[0] = score;\nreturn score;"), 2, 1, "");
    expect_of_compiler(&with_body("if score > 1.0 { return 1.0; }"), 1, 1, "return");
    expect_of_compiler(&with_globals("}"), 1, 1, "expected global item");
    expect_of_compiler(&with_globals("/* a /* b */"), 1, 1, "this comment is never closed");
    expect_of_compiler(&with_body("return score; # no"), 2, 15, "");
    expect_of_compiler(
        &with_globals("fn f(x: f32) -> f32 { return x; }\nfn f(x: f32) -> f32 { return x; }"),
        2,
        4,
        "redefinition of `f`",
    );
    expect_of_compiler("\u{0}", 1, 1, "not allowed");
}

#[test]
fn what_a_function_must_not_do() {
    let globals = "only variables of functions are allowed";
    expect(&with_globals("\nvar<private> x: f32;"), 2, 1, globals);
    expect(&with_globals("var<workgroup> x: array<f32, 64>;"), 1, 1, globals);
    expect(&with_globals("const a = 1;\nvar<storage, read_write> k: array<f32>;"), 2, 1, globals);
    expect(&with_globals("var x: f32;"), 1, 1, globals);
    expect(&with_globals("override x: f32;"), 1, 1, "override is not allowed");
    expect(&with_globals("@compute @workgroup_size(1) fn main() {}"), 1, 1, "attributes are not allowed");
    expect(&with_globals("@group(0) @binding(1) var<storage> q: array<f32>;"), 1, 1, "attributes are not allowed");
    expect("enable f16;\n", 1, 1, "directives are not allowed");
    expect("requires readonly_and_readwrite_storage_textures;", 1, 1, "directives are not allowed");
    expect("diagnostic(off, derivative_uniformity);", 1, 1, "directives are not allowed");
    let statements = "this statement is not allowed";
    expect(&with_body("workgroupBarrier();\nreturn score;"), 2, 1, statements);
    expect(&with_body("storageBarrier(); return score;"), 2, 1, statements);
    expect(&with_body("if score > 0.0 { discard; }\nreturn score;"), 2, 18, statements);
    expect(&with_body("return subgroupAdd(score);"), 2, 8, "not allowed");
    expect(&with_body("return dpdx(score);"), 2, 8, "this operation is not allowed");
    expect(&with_body("var a: atomic<u32>;\nreturn score;"), 2, 1, "this type is not allowed");
    expect(&with_globals("fn f(t: texture_2d<f32>) {}"), 1, 1, "this type is not allowed");
    expect(&with_body("return f32(f16(score));"), 2, 12, "");
    expect(&with_body("return f32(f64(score));"), 2, 12, "");
    assert!(!refused(&with_body("return f32(1h);")).message().contains("by adding"));
    expect(&with_globals("fn f(x: f32) -> f32 { return f(x); }"), 1, 4, "recursive");
    expect(&with_globals("fn f(x: f32) -> f32 { return g(x); }\nfn g(x: f32) -> f32 { return f(x); }"), 2, 4, "cyclic");
}

/// A text cannot see the library's names, and may use them for its own.
#[test]
fn names_of_the_library() {
    for name in ["params", "q", "tables", "LANES", "key_mask", "score_softcap", "philox4x32_10"] {
        expect(&with_body(&format!("return f32({name});")), 2, 12, "no definition in scope");
    }
    for name in ["wgsl_turns_left", "wgsl_aux", "wgsl_mask_mask_mod"] {
        expect(&with_body(&format!("return f32({name});")), 2, 12, "names that begin with wgsl_ are the library's");
        expect(&with_globals(&format!("const {name} = 1.0;")), 1, 7, "names that begin with wgsl_ are the library's");
    }
    for (name, column) in [("let u32", 5), ("var f32", 5), ("const vec3f", 7)] {
        expect(&with_body(&format!("{name} = 1.0;\nreturn aux[kv_idx];")), 2, column, "this is the name of a type");
    }
    expect(&with_globals("alias u32 = i32;"), 1, 7, "this is the name of a type");
    expect(&with_globals("fn f(array: f32) -> f32 { loop { } return array; }"), 1, 6, "this is the name of a type");
    let own = "
        const q = 2.0;
        struct tables { k: f32, q: f32, params: array<f32, 2> }
        alias Cell = vec2<f32>;
        fn min(x: f32) -> f32 { return x * q; }
        fn main(params: f32) -> f32 {
          let t = tables(params, 2.0, array<f32, 2>(1.0, q));
          let c = Cell(t.q, t.params[1]);
          return min(t.k) + c.x + c.y;
        }\n";
    taken(&format!("{own}{SCORE} {{ var q_idx2 = q; return main(score) + q_idx2; }}"));
}

#[test]
fn aux_is_read_and_counted_alone() {
    let reason = "aux is the name of your data";
    expect(&with_body("let p = &aux;\nreturn (*p)[1];"), 2, 10, reason);
    expect(&with_body("let p = &aux[1];\nreturn *p;"), 2, 10, reason);
    expect(&with_body("return (aux)[1];"), 2, 9, reason);
    expect(&with_body("let aux = 1.0; return aux;"), 2, 5, reason);
    expect(&with_globals("const aux = array<f32, 1>(1.0);"), 1, 7, reason);
    expect(&with_globals("struct S { aux: f32 }"), 1, 12, reason);
    expect(&with_globals("fn f(aux: f32) {}"), 1, 6, reason);
    let text = with_body("return f32(kv_idx & aux[q_idx]) + f32(aux[aux[0] & 3u] & arrayLength(&aux));");
    assert!(ScoreWgsl::new(&text).is_err(), "aux is f32");
    let options = WgslOptions::new().with_aux(AuxType::U32);
    assert!(ScoreWgsl::with_options(&text, options).unwrap().reads_aux());
    assert_eq!(fault_in_browsers("score_mod", &text), None);
    assert!(!taken(&with_body("return score;")).reads_aux());
}

/// What would exhaust the compiler's stack, memory or time, or a driver's.
#[test]
fn too_much() {
    let nested = |open: &str, close: &str, count: usize| format!("{}score{}", open.repeat(count), close.repeat(count));
    expect(&with_body(&format!("return {};", nested("(", ")", 30_000))), 2, 56, "brackets are nested deeper than 50");
    expect(
        &with_body(&format!("return {};", nested("f32(", ")", 12_000))),
        2,
        203,
        "brackets are nested deeper than 50",
    );
    expect(&with_body(&format!("{} return score;", "{".repeat(30_000))), 2, 49, "brackets are nested deeper than 50");
    expect(&with_body(&format!("return score{};", "+score".repeat(9_000))), 2, 1213, "more than 200 operators");
    expect(&with_body(&format!("return {}score;", "- ".repeat(20_000))), 2, 408, "more than 200 operators");
    expect(&with_body(&format!("return score{};", ".x".repeat(20_000))), 2, 413, "more than 200 operators");
    expect(&with_body(&format!("let a = true{}; return score;", "&&true".repeat(5_000))), 2, 608, "operators");
    let elses = "else if score > 2.0 { return 3.0; } ".repeat(1_000);
    expect(&with_body(&format!("if score > 1.0 {{ }} {elses} return score;")), 2, 2180, "more than 60 else");
    expect(&with_globals(&format!("// {}", "x".repeat(70_000))), 1, 1, "at most 65536 are allowed");
    expect(&with_body("const a = array<f32, 1000000000>();\nreturn a[5];"), 2, 11, "too large");
    expect(&with_body("var a: array<array<f32, 65536>, 65536>;\nreturn a[5][3];"), 2, 8, "too large");
    expect(&with_body("var a: array<f32, 5000>;\nreturn a[kv_idx];"), 2, 1, "at most 16384 bytes");
    let variables: String = (0..20).map(|n| format!("var a{n}: array<f32, 300>;\n")).collect();
    expect(&with_body(&format!("{variables}return score;")), 1, 1, "the variables of this function take 24000 bytes");
    let mut doubled = "fn g0(x: f32) -> f32 { return x + 1.0; }\n".to_owned();
    for n in 1..60 {
        doubled += &format!("fn g{n}(x: f32) -> f32 {{ return g{before}(x) + g{before}(x); }}\n", before = n - 1);
    }
    // Browsers count tokens.
    expect_of_compiler(&with_globals(&doubled), 12, 1, "at most 16384 are allowed");
    assert!(fault_in_browsers("score_mod", &with_globals(&doubled)).is_some());
    let options = WgslOptions::new().with_max_turns(u32::MAX);
    assert!(ScoreWgsl::with_options(&with_body("loop { } return score;"), options).is_ok());
}

#[test]
fn loops_without_a_limit() {
    let text = "var i = 0;\nloop {\n  if i > 3 { break; }\n  continuing { i += 1; loop { break; } }\n}\nreturn score;";
    expect(&with_body(text), 5, 24, "a loop inside continuing cannot be limited");
    for body in [
        "for (;;) { }",
        "while true { }",
        "loop { continue; }",
        "loop { loop { for (var i = 0; i < 1; i--) { } } }",
        "while (score > 1.0) && (score < 2.0) { for (var i = 0; i < 3; i++) { } }",
        "loop { if score > 1.0 { break; } continuing { break if score < 0.0; } }",
        "switch kv_idx { case 1u, 2u: { loop { } } default: { while true { continue; } } }",
    ] {
        taken(&with_body(&format!("{body}\nreturn score;")));
    }
}

/// Characters that some compilers take for the end of a line, or that hide what a text says.
#[test]
fn misleading_characters() {
    for character in
        ['\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}', '\u{200e}', '\u{202e}', '\u{2066}', '\u{7f}']
    {
        expect(&with_body(&format!("// {character} return 1.0;\nreturn score;")), 2, 4, "is not allowed");
    }
    expect(&with_body("let größe = 1.0;\nreturn größe;"), 2, 7, "write names in ASCII");
    taken(&with_body("// Größe, 大きさ\r\n/* /* ½ */ */\treturn score;"));
}

/// The message shows the line, and where.
#[test]
fn messages() {
    let fault = refused(&with_body("let half = 0.5;\n  return half * skore;"));
    let expected = "score_mod, line 3, column 17: no definition in scope for identifier: `skore`; unknown identifier\n  | \
                      \x20\x20return half * skore;\n  |                 ^";
    assert_eq!(fault.to_string(), expected);
    assert_eq!(fault.source_line(), "  return half * skore;");
}

/// Of a very long line, the message shows what stands around the fault, wherever that is, and of a very long name its beginning.
#[test]
fn long_lines_are_cut() {
    let long = "1.0 + ".repeat(150);
    for (body, before, after) in [
        (format!("return skore + {long}1.0;"), "", "…"),
        (format!("let a = {long}1.0; let b = skore; let c = {long}1.0; return score;"), "…", "…"),
        (format!("let a = {long}1.0; return skore;"), "…", ""),
    ] {
        let fault = refused(&with_body(&body));
        assert_eq!(fault.column() as usize, 1 + body.find("skore").unwrap(), "{fault}");
        let line = fault.source_line();
        assert!(line.starts_with(before) && line.ends_with(after) && line.chars().count() <= 102, "{fault}");
        let text = fault.to_string();
        let [.., quoted, mark] = text.lines().collect::<Vec<_>>()[..] else { panic!("{fault}") };
        let marked: String = quoted.chars().skip(mark.chars().count() - 1).take(5).collect();
        assert_eq!(marked, "skore", "{fault}");
    }
    let fault = refused(&with_body(&format!("return {};", "x".repeat(5000))));
    assert!(fault.message().contains("no definition in scope") && fault.to_string().len() < 500, "{fault}");
}

/// The deepest texts that are taken, on a stack like the smallest that a main thread has.
#[test]
fn deep_texts_need_little_stack() {
    let depth = 47;
    let deep = [
        format!("return {}score{};", "(".repeat(depth), ")".repeat(depth)),
        format!("return {}score{};", "abs(1.0 + ".repeat(depth), ")".repeat(depth)),
        format!("return score{};", " + score".repeat(199)),
        format!("return {}score{};", "-(1.0 + ".repeat(depth), ") * 2.0".repeat(depth)),
        format!("let a = score > 1.0{}; return select(score, 1.0, a);", " && true".repeat(99)),
        format!("{}{} return score;", "if score > 1.0 { ".repeat(depth), "}".repeat(depth)),
        format!("{}{} return score;", "loop { ".repeat(depth), "}".repeat(depth)),
        format!("if score > 1.0 {{ }} {} return score;", "else if score > 2.0 { return 3.0; } ".repeat(60)),
    ];
    let check = move || deep.iter().for_each(|body| drop(taken(&with_body(body))));
    std::thread::Builder::new().stack_size(1 << 20).spawn(check).unwrap().join().unwrap();
}

const WHOLE: &str = "
    struct Pair { first: u32, second: u32 }
    alias Four = array<f32, 4>;
    const TABLE = Four(1.0, 2.5, 3e-1, 0x1p-2);
    fn pair(x: u32) -> Pair { return Pair(x % 5u, x / 7u); }
    fn add(x: ptr<function, f32>, y: f32) { *x += y; }
    fn score_mod(score: f32, batch: u32, head: u32, q_idx: u32, kv_idx: u32) -> f32 {
      var sum = score; let p = pair(kv_idx);
      for (var i = 0u; i < 4u; i++) { if p.first == i { continue; } add(&sum, TABLE[i] * aux[p.second + i]); }
      switch head { case 0u, 1u: { sum *= 2.0; } default: { while sum > 9.0 { sum -= 1.0; } } }
      loop { sum += 1.0; continuing { break if sum > f32(arrayLength(&aux)); } }
      return select(sum, -sum, any(vec2<bool>(q_idx > kv_idx, batch == 1u)));
    }";

/// `text` with tokens too few, too many or in other places, and with some of `others` among them.
fn damaged<'a>(text: &'a str, others: &'a [&'a str]) -> impl Iterator<Item = String> {
    let tokens: Vec<&str> = text.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    std::iter::repeat_with(move || {
        let mut damaged = tokens.clone();
        for _ in 0..=random(2) {
            let (from, to) = (random(damaged.len()), random(damaged.len()));
            match random(if others.is_empty() { 3 } else { 6 }) {
                0 => drop(damaged.remove(from)),
                1 => damaged.insert(to, damaged[from]),
                2 => damaged.swap(from, to),
                3 => damaged[from] = others[random(others.len())],
                _ => damaged.insert(to, others[random(others.len())]),
            }
        }
        damaged.concat()
    })
}

/// Texts with a token too few, too many or in another place: refused or not, but never a panic.
#[test]
fn damaged_texts() {
    taken(WHOLE);
    let mut taken = 0;
    for text in damaged(WHOLE, &[]).take(4_000) {
        match ScoreWgsl::new(&text) {
            Ok(_) => taken += 1,
            Err(fault) => assert!(!fault.message().contains("please report"), "{fault}\n{text}"),
        }
    }
    assert!(taken > 0, "some damage does no harm");
}

/// What no text may do.
const HARMFUL: &[&str] = &[
    "workgroupBarrier();",
    "storageBarrier()",
    "discard;",
    "subgroupAdd(score)",
    "subgroupBallot(true)",
    "dpdx(score)",
    "quadBroadcast(score, 0u)",
    "atomic<u32>",
    "atomicAdd(&sum, 1u);",
    "params",
    "tables",
    "q",
    "wgsl_aux(0u)",
    "wgsl_turns_left",
    "score_softcap(score)",
    "main()",
    "var<private> x: f32;",
    "var<workgroup> x: f32;",
    "var<storage, read_write> x: array<f32>;",
    "var x: f32;",
    "override x: f32;",
    "enable f16;",
    "requires x;",
    "@compute",
    "@group(0) @binding(1)",
    "ptr<private, f32>",
    "ptr<storage, f32>",
    "ptr<workgroup, f32>",
    "&aux",
    "aux",
    "f16",
    "f64",
    "1h",
    "1lu",
    "vec2<f16>",
    "vec2h",
    "texture_2d<f32>",
    "sampler",
    "binding_array<f32>",
    "score_mod(",
    "pair(",
    "array<f32, 100000>()",
    "array<array<f32, 100>, 100>()",
    "var y: array<f32, 4000>;",
    "var z = TABLE;",
    "loop { loop { } }",
    "continuing { loop { } }",
    "for (;;) { }",
    "while true { }",
    "/*",
    "*/",
    "//",
    "\n",
    "let params = 1.0;",
    "{ let q = 1.0; }",
    "let q = q;",
    "fn f() { return f(); }",
    "fn g() -> f32 { return score_mod(1.0, 1u, 1u, 1u, 1u); }",
    "const TABLE = 1.0;",
    "alias Four = Four;",
    "struct Pair { of: Pair }",
    "struct Big { a: array<f32, 3000>, b: array<f32, 3000> }",
    "Big",
    "array<f32>",
    "for (var q = 0u; q < 3u; q++) { }",
];

/// Reasons of the gate that protect the device, and not the caller from mistakes.
const SAFETY: &[&str] = &[
    "not allowed",
    "allowed;",
    "are allowed",
    "is too large",
    "recursive",
    "cyclic",
    "no definition in scope",
    "the library's",
    "nested deeper",
    "pointers may point",
    "your data",
    "cannot be limited",
];

/// WGSL's own words, which stand for nothing of the library's, in the wrong place.
fn is_misplaced(fault: &WgslFault) -> bool {
    let own = "f32 u32 bool array vec2 any select arrayLength continuing case default while break return if loop continue switch for";
    own.split(' ').any(|word| fault.message().contains(&format!("identifier: `{word}`")))
}

/// What is refused for the sake of the device is refused in browsers too, however it is written. And what is taken is taken.
#[test]
fn browsers_refuse_what_is_refused() {
    let (mut refused, mut taken, mut wrong) = (0, 0, Vec::new());
    for text in damaged(WHOLE, &[]).take(4_000).chain(damaged(WHOLE, HARMFUL).take(12_000)) {
        let in_browsers = fault_in_browsers("score_mod", &text);
        match ScoreWgsl::new(&text) {
            Err(fault) if SAFETY.iter().any(|reason| fault.message().contains(reason)) && !is_misplaced(&fault) => {
                if in_browsers.is_none() {
                    wrong.push(format!("browsers take this: {fault}\n{text}"));
                }
                refused += 1;
            }
            Err(_) => {}
            Ok(_) => {
                wrong.extend(in_browsers.map(|fault| format!("browsers refuse this: {fault}\n{text}")));
                taken += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts: {}", wrong.len(), wrong.join("\n"));
    assert!(refused > 1_000 && taken > 100, "{refused} refused, {taken} taken");
}

/// Every text of the page for people who come from FlexAttention.
#[test]
fn texts_of_the_documentation() {
    let page = include_str!("../docs/flex-attention.md");
    let blocks: Vec<&str> = page.split("```wgsl\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let sections = page.split("\n## ").skip(1).filter(|section| !section.starts_with("Speed"));
    assert_eq!(blocks.len(), sections.count(), "each section has a text, but for that on speed");
    for block in blocks {
        let is_u32 = block.contains("aux: array<u32>");
        let options = WgslOptions::new().with_aux(if is_u32 { AuxType::U32 } else { AuxType::F32 });
        let reads_aux = if block.contains("fn score_mod(") {
            let score = ScoreWgsl::with_options(block, options).unwrap_or_else(|fault| panic!("{fault}\n{block}"));
            assert!(score.has_gradient(), "{block}");
            score.reads_aux()
        } else {
            let mask = MaskWgsl::with_options(block, options).unwrap_or_else(|fault| panic!("{fault}\n{block}"));
            mask.reads_aux()
        };
        assert_eq!(reads_aux, block.contains("aux: array<"), "{block}");
    }
}

/// The texts of tests, examples and documentation that are taken here are taken in browsers.
#[test]
fn browsers_take_what_is_taken() {
    let sources = [
        include_str!("../docs/flex-attention.md"),
        include_str!("../examples/custom_score_mod.rs"),
        include_str!("../src/problem/wgsl/mod.rs"),
        include_str!("../src/gpu/blocks.rs"),
        include_str!("cli/own_wgsl.rs"),
        include_str!("gpu/blocks.rs"),
        include_str!("gpu/own_wgsl.rs"),
        include_str!("shader_contract.rs"),
    ];
    let mut taken = 0;
    for text in sources.iter().flat_map(|source| source.split("```wgsl").flat_map(|part| part.split(['"', '`']))) {
        for aux in [AuxType::F32, AuxType::U32] {
            let options = WgslOptions::new().with_aux(aux);
            for function in ["score_mod", "mask_mod"] {
                let is_taken = match function {
                    "score_mod" => ScoreWgsl::with_options(text, options).is_ok(),
                    _ => MaskWgsl::with_options(text, options).is_ok(),
                };
                if is_taken {
                    assert_eq!(fault_in_browsers(function, text), None, "{text}");
                    taken += 1;
                }
            }
        }
    }
    assert!(taken > 30, "{taken} texts");
}
