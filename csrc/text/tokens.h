/* What tokens are for, and how much of everything a tokenizer takes. */
#ifndef RT_TOKENS_H
#define RT_TOKENS_H

typedef enum rt_token_kind {
  RT_TOKEN_NORMAL = 0, /* made by merges, written as the family writes its tokens */
  RT_TOKEN_ADDED,      /* matched in any text before it is split; literal text */
  RT_TOKEN_SPECIAL,    /* matched only where special tokens are allowed; literal text */
  RT_TOKEN_UNUSED,     /* never produced; literal text */
  RT_TOKEN_BYTE,       /* one byte of a character that has no token, written <0xHH>; byte-level BPE has none */
  RT_TOKEN_KINDS
} rt_token_kind;

enum { RT_MAX_TOKENS = 1 << 24, RT_MAX_ADDED_BYTES = 256, RT_MAX_PIECE_BYTES = 512, RT_MAX_TEXT = 1 << 30 };
#endif
