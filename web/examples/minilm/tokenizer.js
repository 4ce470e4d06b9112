// WordPiece, as uncased BERT models have it.

/** The most tokens of a sentence that all-MiniLM-L6-v2 was trained on. */
const LONGEST = 256;
const LONGEST_WORD = 100;

export class Tokenizer {
  #vocabulary;

  /** `json` is the model's tokenizer.json. */
  constructor(json) {
    const { model } = JSON.parse(json);
    if (model?.type !== 'WordPiece') throw new Error(`the tokenizer is of type ${model?.type}; this example knows WordPiece`);
    this.#vocabulary = new Map(Object.entries(model.vocab));
  }

  /** The numbers of a sentence's tokens, between [CLS] and [SEP]. */
  encode(text) {
    const number = (token) => this.#vocabulary.get(token);
    const inner = words(text).flatMap((word) => this.#pieces(word)).map(number);
    return [number('[CLS]'), ...inner.slice(0, LONGEST - 2), number('[SEP]')];
  }

  /** The longest piece that the vocabulary has, again and again. */
  #pieces(word) {
    if ([...word].length > LONGEST_WORD) return ['[UNK]'];
    const pieces = [];
    for (let first = 0; first < word.length;) {
      const prefix = first > 0 ? '##' : '';
      let end = word.length;
      while (end > first && !this.#vocabulary.has(prefix + word.slice(first, end))) end--;
      if (end === first) return ['[UNK]'];
      pieces.push(prefix + word.slice(first, end));
      first = end;
    }
    return pieces;
  }
}

/** Small letters without accents; marks and Chinese characters are words of their own. */
function words(text) {
  const plain = text.replace(/[\0\ufffd]|(?![\t\n\r])\p{C}/gu, '').toLowerCase().normalize('NFD').replace(/\p{Mn}/gu, '');
  return plain.match(/[!-/:-@[-`{-~\p{P}]|\p{Script=Han}|[^\s!-/:-@[-`{-~\p{P}\p{Script=Han}]+/gu) ?? [];
}
