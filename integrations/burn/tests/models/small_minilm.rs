//! A small BERT from a seed: packed and padded batches against f64.

use crate::files::small_safetensors;
use crate::minilm::{Attention, MiniLm};
use crate::{device, error, reference, say, values};

#[test]
fn embeddings_are_those_of_f64() {
    let (file, config) = small_safetensors(1);
    let model = MiniLm::read(config.clone(), &file.bytes, &device()).unwrap();
    let token =
        |sentence: usize, place: usize| ((sentence * 13 + place * place * 5 + place) % config.vocab_size) as u32;
    let sentence = |sentence: usize, length: usize| (0..length).map(|place| token(sentence, place)).collect::<Vec<_>>();
    // Of one token, and of as many as there are positions.
    let sentences: Vec<Vec<u32>> =
        [5, 1, 40, 17, 17, 2].iter().enumerate().map(|(i, &length)| sentence(i, length)).collect();
    let expected: Vec<f64> = sentences.iter().flat_map(|tokens| reference::minilm(&file, &config, tokens)).collect();

    let error_of = |attention| error(&values(model.embed(&sentences, attention).unwrap()), &expected);
    let (flash, burn) = (error_of(Attention::Flash), error_of(Attention::Burn));
    say(&format!("small MiniLM: error {flash:.1e}, with Burn's attention {burn:.1e}"));
    assert!(flash <= 2.0 * burn + 1e-6, "{flash:e} > 2 · {burn:e}");

    let alone: Vec<f32> = sentences
        .iter()
        .flat_map(|sentence| values(model.embed(std::slice::from_ref(sentence), Attention::Flash).unwrap()))
        .collect();
    let alone = error(&alone, &expected);
    assert!(alone <= 2.0 * burn + 1e-6, "one by one: {alone:e} > 2 · {burn:e}");
}

#[test]
fn misuse_is_an_error() {
    let (file, config) = small_safetensors(1);
    let model = MiniLm::read(config.clone(), &file.bytes, &device()).unwrap();
    let refused = |sentences: &[Vec<u32>]| model.embed(sentences, Attention::Flash).err().unwrap().to_string();
    assert_eq!(refused(&[]), "there are no sentences");
    assert_eq!(refused(&[vec![1], vec![]]), "a sentence has no tokens");
    assert_eq!(refused(&[vec![61]]), "a token is not one of 61");
    assert_eq!(refused(&[vec![0; 41]]), "a sentence has 41 tokens; the model reads 40");
    let wrong = crate::minilm::Config { intermediate_size: 81, ..config };
    let refused = MiniLm::read(wrong, &file.bytes, &device()).err().unwrap().to_string();
    assert!(refused.contains("the model needs F32 [81, 48]"), "{refused}");
}
