// The tokens of `minilm.bin`, in WordPiece: what begins with ## continues a word.
export const TOKENS = `
[CLS] # flash attention this document was prepared * * only * * for ds - 58 ##9 ##9 paper presentation at vanderbilt
university . the publication ( flash ##att ##ent ##ion : fast and memory - efficient exact attention with io -
awareness ) by da ##o et al . can be found [ here ] ( https : / / ar ##xi ##v . org / abs / 220 ##5 . 141 ##35 ) #
motivation of flash attention : modeling longer sequences * * * nl ##p * * : large context required to understand
books , plays , and instruction manual ##s * * * computer vision * * : higher resolution can lead to a better and more
robust insight * * *
`.trim().split(/\s+/);
