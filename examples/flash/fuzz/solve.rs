//! Solves a case on the GPU and with the oracle.

use wgpu_flash_attention::reference;
use wgpu_flash_attention::{
    AttentionProblem, BackwardBuffers, Capabilities, Element, Error, FlashAttention, ForwardBuffers, Operand, Plan,
    PlanBuilder, ProbabilitiesBuffers, ProbabilitiesProblem, Tiles,
};

use super::append;
use super::case::Case;
use super::gpu_call::{self, Given, Tensors, Way};
use super::judge::{self, Expected};
use super::problem::{Asked, Question};
use super::values::{Side, Values, words};
use crate::check::arithmetic;
use crate::elements;

/// The library on one device, with and without bounds checks. Pipelines live as long as it does.
pub struct Libraries {
    plain: FlashAttention,
    checked: FlashAttention,
}

/// How a case ended.
pub enum Outcome {
    /// The largest share of a bound.
    Good(f64),
    /// The planner has no kernel for it.
    Refused(String),
    Bad(String),
}

impl From<Result<f64, String>> for Outcome {
    fn from(result: Result<f64, String>) -> Self {
        result.map_or_else(Outcome::Bad, Outcome::Good)
    }
}

impl Libraries {
    /// With new pipelines.
    pub fn new(attention: &FlashAttention) -> Self {
        let plain = attention.clone().with_checked_shaders(true).with_checked_shaders(false);
        Self { plain, checked: attention.clone().with_checked_shaders(true) }
    }

    /// For a case.
    pub fn of(&self, case: &Case) -> FlashAttention {
        let library = if case.checked == 1 { &self.checked } else { &self.plain };
        let mut capabilities = library.capabilities().clone();
        match case.device {
            1 => capabilities.shader_f16 = false,
            2 => capabilities.subgroups = false,
            3 => capabilities = Capabilities::webgpu_defaults(),
            4 => capabilities.max_binding = 16 << 10,
            _ => {}
        }
        library.clone().with_matrices(case.matrices == 1).with_capabilities(capabilities)
    }
}

/// Runs a case and compares.
pub fn solve(libraries: &Libraries, case: &Case) -> Outcome {
    let case = case.settled();
    let library = libraries.of(&case);
    if case.append == 1 {
        return append::solve(&library, &case);
    }
    let question = match case.question() {
        Ok(question) => question,
        Err(reason) => return Outcome::Bad(reason),
    };
    let values: Vec<Values> =
        question.calls.iter().zip(0..).map(|(asked, n)| Values::new(&case, &question, asked, n)).collect();
    let attempt = Attempt { case: &case, library: &library, question: &question, values: &values };
    let attempted = match (case.backward, case.probabilities) {
        (1, _) => attempt.backward(),
        (_, 1) => attempt.probabilities(),
        _ => attempt.forward(),
    };
    attempted.map_or_else(|outcome| outcome, Outcome::Good)
}

/// What planning said.
pub fn refused(error: Error) -> Outcome {
    match error {
        Error::Unsupported { .. } | Error::TooLarge { .. } | Error::TooManyDispatches { .. } => {
            Outcome::Refused(error.to_string())
        }
        error => Outcome::Bad(error.to_string()),
    }
}

struct Attempt<'a> {
    case: &'a Case,
    library: &'a FlashAttention,
    question: &'a Question,
    values: &'a [Values<'a>],
}

impl Attempt<'_> {
    fn forward(&self) -> Result<f64, Outcome> {
        let problem = &self.question.prepared;
        let candidates = Plan::candidates(problem, self.library.capabilities());
        let tiles = self.case.tiles.checked_sub(1).map(|n| n as usize % candidates.len().max(1));
        let tiles: Vec<Tiles> = tiles.and_then(|n| candidates.get(n).copied()).into_iter().collect();
        let tiles = if self.case.standard == 1 { &[] } else { &tiles[..] };
        let builder = self.library.plan_forward(problem).with_tiles(tiles);
        let splits = (self.case.splits > 0 && self.case.standard == 0).then_some(self.case.splits as u32);
        let plan = splits.into_iter().fold(builder, PlanBuilder::with_splits).build().map_err(refused)?;
        let arithmetic = arithmetic(Some(&plan));
        let prepared = pollster::block_on(self.library.prepare_forward_plan(plan)).map_err(refused)?;
        let found = gpu_call::run(
            self.library,
            &prepared,
            |slice| {
                use Operand::{K, Lse, O, Q, V};
                ForwardBuffers::new(slice(Q), slice(K), slice(V), slice(O), slice(Lse))
            },
            &self.given(|_, _| Vec::new()),
            &self.way(),
        );
        let found = found.map_err(Outcome::Bad)?;
        self.judge(found, |values, _| {
            judge::forward(values.case(), [&values.q, &values.k, &values.v], problem, arithmetic)
        })
    }

    fn backward(&self) -> Result<f64, Outcome> {
        let problem = &self.question.prepared;
        const CHOICES: [[Tiles; 2]; 3] = [
            [Tiles::new(8, 32, 2, 4), Tiles::new(32, 8, 2, 4)],
            [Tiles::new(1, 4, 1, 1), Tiles::new(8, 4, 1, 1)],
            [Tiles::new(32, 64, 4, 2), Tiles::new(96, 32, 3, 4)],
        ];
        let tiles = self.case.tiles.checked_sub(1).filter(|_| self.case.standard == 0);
        let tiles = tiles.map_or(&[][..], |n| &CHOICES[n as usize % CHOICES.len()]);
        let plan = self.library.plan_backward(problem).with_tiles(tiles).build().map_err(refused)?;
        let arithmetic = arithmetic(Some(&plan));
        let prepared = pollster::block_on(self.library.prepare_backward_plan(plan)).map_err(refused)?;
        // O as a forward pass stores it, and LSE in f32.
        let forward: Vec<Forward> = self.values.iter().zip(&self.question.calls).map(Forward::of).collect();
        let found = gpu_call::run(
            self.library,
            &prepared,
            |slice| {
                use Operand::{DO, Dk, Dq, Dv, K, Lse, O, Q, V};
                let forward = ForwardBuffers::new(slice(Q), slice(K), slice(V), slice(O), slice(Lse));
                BackwardBuffers::new(forward, slice(DO), slice(Dq), slice(Dk), slice(Dv))
            },
            &self.given(|values, n| forward[n].tensors(values, problem, &self.question.calls[n])),
            &self.way(),
        );
        let found = found.map_err(Outcome::Bad)?;
        self.judge(found, |values, n| {
            let tensors = [&values.q[..], &values.k, &values.v, &forward[n].o];
            judge::backward(values.case(), tensors, &values.d_o, values.d_lse.as_deref(), arithmetic)
        })
    }

    fn probabilities(&self) -> Result<f64, Outcome> {
        let problem = &self.question.prepared;
        let shape = problem.shape;
        let some = |count: u32, turn: u64| {
            let first = (turn % u64::from(count.max(1))) as u32;
            first..(first + 1 + count / 3).min(count)
        };
        let (heads, rows) = (some(shape.num_heads, self.case.seed), some(shape.seqlen_q, self.case.seed >> 8));
        if heads.is_empty() || rows.is_empty() {
            return Ok(0.0);
        }
        let chosen = ProbabilitiesProblem::new(problem.clone(), heads.clone(), rows.clone());
        let prepared = pollster::block_on(self.library.prepare_probabilities(&chosen)).map_err(refused)?;
        let forward: Vec<Forward> = self.values.iter().zip(&self.question.calls).map(Forward::of).collect();
        let found = gpu_call::run(
            self.library,
            &prepared,
            |slice| {
                use Operand::{K, Lse, Probabilities, Q};
                ProbabilitiesBuffers::new(slice(Q), slice(K), slice(Lse), slice(Probabilities))
            },
            &self.given(|_, n| vec![(Operand::Lse, forward[n].lse_bytes(problem, &self.question.calls[n]))]),
            &self.way(),
        );
        let found = found.map_err(Outcome::Bad)?;
        self.judge(found, |values, n| {
            let of_call = self.question.calls[n].solved.shape;
            // A shorter call has fewer of them.
            let own_rows = rows.start.min(of_call.seqlen_q)..rows.end.min(of_call.seqlen_q);
            let of = [&values.q[..], &values.k];
            let expected = reference::probabilities(values.case(), of[0], of[1], heads.clone(), own_rows.clone());
            let errors = reference::probabilities_errors(values.case(), of[0], of[1], heads.clone(), own_rows.clone());
            let counts = [own_rows.len() as u32, of_call.seqlen_kv];
            let whole = Expected::whole(Operand::Probabilities, Element::F32, expected, errors);
            vec![whole.spread(counts, [rows.len() as u32, shape.seqlen_kv])]
        })
    }

    fn way(&self) -> Way {
        Way {
            guard: 16 * (1 + self.case.seed % 40),
            apart: self.case.apart == 1,
            one_buffer: self.question.one_buffer,
            writes_q: false,
        }
    }

    /// What each call reads: values, tables, and `more`.
    fn given(&self, more: impl Fn(&Values, usize) -> Vec<(Operand, Vec<u8>)>) -> Vec<Given> {
        let of_call = |(n, (values, asked)): (usize, (&Values, &Asked))| {
            let mut tensors: Tensors = values.bytes().into_iter().collect();
            tensors.extend(asked.tables.iter().map(|(operand, table)| (*operand, words(table))));
            tensors.extend(more(values, n));
            Given { call: asked.call, tensors }
        };
        self.values.iter().zip(&self.question.calls).enumerate().map(of_call).collect()
    }

    /// The largest share of a bound in all calls.
    fn judge(&self, found: Vec<Tensors>, expected: impl Fn(&Values, usize) -> Vec<Expected>) -> Result<f64, Outcome> {
        let mut largest = 0f64;
        for (number, (found, values)) in found.iter().zip(self.values).enumerate() {
            for expected in expected(values, number) {
                let bytes = found.get(&expected.operand).map_or(&[][..], Vec::as_slice);
                let share = expected.judge(bytes).map_err(|reason| Outcome::Bad(format!("call {number}: {reason}")))?;
                largest = largest.max(share);
            }
        }
        Ok(largest)
    }
}

/// What a forward pass gives to a backward pass.
struct Forward {
    /// NaN where no row is.
    o: Vec<f64>,
    lse: Vec<f64>,
}

impl Forward {
    fn of((values, asked): (&Values, &Asked)) -> Self {
        let problem = &asked.solved;
        let answer = reference::forward(values.case(), &values.q, &values.k, &values.v);
        let own = Side::Q.own(problem, &problem.layout.o, problem.shape.num_heads, problem.shape.head_dim_v);
        let stored = |(o, own): (&f64, bool)| if own { problem.element.round(*o) } else { f64::NAN };
        Self { o: answer.o.iter().zip(own).map(stored).collect(), lse: answer.lse }
    }

    fn lse_bytes(&self, prepared: &AttentionProblem, asked: &Asked) -> Vec<u8> {
        let lse = judge::spread(&self.lse, [&asked.solved, prepared], f64::NAN);
        elements::encode(Element::F32, lse.into_iter())
    }

    fn tensors(&self, values: &Values, prepared: &AttentionProblem, asked: &Asked) -> Vec<(Operand, Vec<u8>)> {
        let of_problem = |values: &[f64]| elements::encode(prepared.element, values.iter().copied());
        let mut tensors = vec![
            (Operand::O, of_problem(&self.o)),
            (Operand::DO, of_problem(&values.d_o)),
            (Operand::Lse, self.lse_bytes(prepared, asked)),
        ];
        if let Some(d_lse) = &values.d_lse {
            let d_lse = judge::spread(d_lse, [&asked.solved, prepared], f64::NAN);
            tensors.push((Operand::DLse, elements::encode(Element::F32, d_lse.into_iter())));
        }
        tensors
    }
}
