import { InvalidOptionError } from './errors.js';
import { describe, has } from './checks.js';

/** @internal Refuses what is no `AbortSignal`, and throws the reason of one that is aborted. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  if (!isSignal(signal)) {
    const advice = has(signal, 'signal') ? ' (an AbortController has it as its `signal`)' : '';
    throw new InvalidOptionError(`signal is ${describe(signal)}; pass an AbortSignal${advice}`);
  }
  if (signal.aborted) throw signal.reason;
}

/** By what is asked of it: it may be of another frame. */
function isSignal(value: unknown): boolean {
  try {
    const { aborted, addEventListener, removeEventListener, throwIfAborted } = Object(value) as Partial<AbortSignal>;
    return typeof aborted === 'boolean' && [addEventListener, removeEventListener, throwIfAborted].every((method) => typeof method === 'function');
  } catch {
    return false;
  }
}

/**
 * @internal Settles as `work` does, or rejects as soon as the signal is aborted; `work` itself goes on to its end, and what it then
 * gives is discarded, because nobody has it.
 */
export function untilAborted<T>(signal: AbortSignal | undefined, work: Promise<T>, discard: (late: T) => void): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      reject(signal.reason as Error);
      work.then(discard, () => undefined);
    };
    signal.addEventListener('abort', abort, { once: true });
    if (signal.aborted) abort();
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/** @internal What a function of the caller's threw, which the call throws as it is. */
export class CallersError {
  readonly error: unknown;

  constructor(error: unknown) {
    this.error = error;
  }
}
