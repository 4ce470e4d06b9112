import { InvalidOptionError } from './errors.js';
import { describe } from './checks.js';

/** @internal Refuses what is no `AbortSignal`, and throws the reason of one that is aborted. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  const { aborted, addEventListener } = Object(signal) as Partial<AbortSignal>;
  if (typeof aborted !== 'boolean' || typeof addEventListener !== 'function') {
    const advice = 'signal' in Object(signal) ? ' (an AbortController has it as its `signal`)' : '';
    throw new InvalidOptionError(`signal is ${describe(signal)}; pass an AbortSignal${advice}`);
  }
  if (aborted) throw signal.reason;
}

/** @internal Settles as `work` does, or rejects as soon as the signal is aborted; `work` itself goes on to its end. */
export function untilAborted<T>(signal: AbortSignal | undefined, work: Promise<T>): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error);
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
