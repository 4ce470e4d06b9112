/** @internal `GPUBufferUsage`, whose numbers the standard fixes but TypeScript's own library leaves out. */
export const BufferUsage = { MAP_READ: 0x1, COPY_SRC: 0x4, COPY_DST: 0x8, STORAGE: 0x80, QUERY_RESOLVE: 0x200 } as const;
/** @internal `GPUMapMode.READ` */
export const MAP_MODE_READ = 1;
