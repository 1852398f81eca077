package org.gridcpr;

import static org.gridcpr.Library.checked;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A checkpoint that the program writes itself: named buffers, in generations that count only when they are complete.
 *
 * <pre>{@code
 * DoubleBuffer field = Checkpoint.doubles(1000 * 1000);
 * LongBuffer step = Checkpoint.longs(1);
 * try (Checkpoint state = new Checkpoint("/scratch", "heat")) {
 *     state.protect("field", field, 1000, 1000);
 *     state.protect("step", step);
 *     state.restore();
 *     ...
 *     state.write();
 * }
 * }</pre>
 *
 * <p>Buffers have to be direct ones, in the byte order of the machine, because arrays of Java move in memory. What is
 * saved is the whole buffer, whatever its position and limit are. To be used by one thread at a time.
 */
public final class Checkpoint implements AutoCloseable {
    private static final int INT16 = 1;
    private static final int INT32 = 2;
    private static final int INT64 = 3;
    private static final int FLOAT32 = 8;
    private static final int FLOAT64 = 9;
    private static final int BYTES = 12;

    static {
        Library.load();
    }

    /** How a checkpoint is opened; 0 and null leave things as the environment says. */
    public static final class Options {
        private int rank;
        private int ranks = 1;
        private int keep;
        private long lifetime;
        private String sequence;
        private String session;

        /** Leaves everything as the environment says. */
        public Options() {}

        /**
         * Which part is ours, from 0, and how many there are.
         *
         * @param rank which part
         * @param ranks how many
         * @return this
         */
        public Options rank(int rank, int ranks) {
            this.rank = rank;
            this.ranks = ranks;
            return this;
        }

        /**
         * How many complete generations are kept.
         *
         * @param generations how many
         * @return this
         */
        public Options keep(int generations) {
            this.keep = generations;
            return this;
        }

        /**
         * Seconds for which a generation is kept.
         *
         * @param seconds how long
         * @return this
         */
        public Options lifetime(long seconds) {
            this.lifetime = seconds;
            return this;
        }

        /**
         * F: full; I: what changed since the last F; i: since the last one. In turn.
         *
         * @param sequence letters
         * @return this
         */
        public Options sequence(String sequence) {
            this.sequence = sequence;
            return this;
        }

        /**
         * The same for all ranks of one run, another in the next.
         *
         * @param session any text
         * @return this
         */
        public Options session(String session) {
            this.session = session;
            return this;
        }
    }

    private long app;
    // What is protected must not be collected.
    private final Map<String, Buffer> kept = new HashMap<>();

    /**
     * Opens a checkpoint below a base directory.
     *
     * @param base the base directory
     * @param name the checkpoint's name
     */
    public Checkpoint(String base, String name) {
        this(base, name, new Options());
    }

    /**
     * The same with options.
     *
     * @param base the base directory
     * @param name the checkpoint's name
     * @param options how it is opened
     */
    public Checkpoint(String base, String name, Options options) {
        app = open(
                base, name, options.rank, options.ranks, options.keep, options.lifetime, options.sequence,
                options.session);
        if (app == 0) {
            throw new GridCprException(Library.errorCode(), Library.error());
        }
    }

    /**
     * A buffer of the kind that can be protected.
     *
     * @param length how many elements
     * @return the buffer
     */
    public static DoubleBuffer doubles(int length) {
        return bytes(Math.multiplyExact(length, Double.BYTES)).asDoubleBuffer();
    }

    /**
     * A buffer of the kind that can be protected.
     *
     * @param length how many elements
     * @return the buffer
     */
    public static LongBuffer longs(int length) {
        return bytes(Math.multiplyExact(length, Long.BYTES)).asLongBuffer();
    }

    /**
     * A buffer of the kind that can be protected.
     *
     * @param length how many elements
     * @return the buffer
     */
    public static IntBuffer ints(int length) {
        return bytes(Math.multiplyExact(length, Integer.BYTES)).asIntBuffer();
    }

    /**
     * A buffer of the kind that can be protected.
     *
     * @param length how many elements
     * @return the buffer
     */
    public static ByteBuffer bytes(int length) {
        return ByteBuffer.allocateDirect(length).order(ByteOrder.nativeOrder());
    }

    /** How the elements of an array with several dimensions follow each other. */
    public enum Order {
        /** The last index runs fastest. */
        C,
        /** The first index runs fastest. */
        FORTRAN
    }

    /**
     * Names a buffer.
     *
     * @param name its name
     * @param buffer the buffer
     * @param shape elements along each dimension, the last of which runs fastest; one dimension unless given
     */
    public void protect(String name, Buffer buffer, long... shape) {
        protect(name, buffer, Order.C, shape);
    }

    /**
     * Names a buffer that is an array in this order.
     *
     * @param name its name
     * @param buffer the buffer
     * @param order how its elements follow each other
     * @param shape elements along each dimension; one dimension unless given
     */
    public void protect(String name, Buffer buffer, Order order, long... shape) {
        long[] extents = shape.length == 0 ? new long[] {buffer.capacity()} : shape.clone();
        long elements = 1;
        for (long extent : extents) {
            elements = Math.multiplyExact(elements, extent);
        }
        if (elements != buffer.capacity()) {
            throw new IllegalArgumentException(name + " has " + buffer.capacity() + " elements and not " + elements);
        }
        keep(name, buffer, extents, null, order);
    }

    /**
     * Names an array whose elements do not lie one after the other.
     *
     * @param name its name
     * @param buffer the buffer
     * @param shape elements along each dimension
     * @param strides elements of the buffer from one index to the next, for each dimension
     */
    public void protectStrided(String name, Buffer buffer, long[] shape, long[] strides) {
        if (shape.length != strides.length) {
            throw new IllegalArgumentException(name + " needs a stride for each dimension");
        }
        long last = 0;
        boolean empty = false;
        for (int i = 0; i < shape.length; i++) {
            if (shape[i] < 0 || strides[i] < 0) {
                throw new IllegalArgumentException(name + " has a negative extent or stride");
            }
            empty |= shape[i] == 0;
            last = Math.addExact(last, Math.multiplyExact(Math.max(shape[i] - 1, 0), strides[i]));
        }
        if (!empty && last >= buffer.capacity()) {
            throw new IllegalArgumentException(name + " leads out of its buffer");
        }
        keep(name, buffer, shape.clone(), strides.clone(), Order.C);
    }

    private void keep(String name, Buffer buffer, long[] extents, long[] strides, Order layout) {
        int type;
        int size;
        ByteOrder order;
        if (buffer instanceof DoubleBuffer numbers) {
            type = FLOAT64;
            size = Double.BYTES;
            order = numbers.order();
        } else if (buffer instanceof FloatBuffer numbers) {
            type = FLOAT32;
            size = Float.BYTES;
            order = numbers.order();
        } else if (buffer instanceof LongBuffer numbers) {
            type = INT64;
            size = Long.BYTES;
            order = numbers.order();
        } else if (buffer instanceof IntBuffer numbers) {
            type = INT32;
            size = Integer.BYTES;
            order = numbers.order();
        } else if (buffer instanceof ShortBuffer numbers) {
            type = INT16;
            size = Short.BYTES;
            order = numbers.order();
        } else if (buffer instanceof ByteBuffer) {
            type = BYTES;
            size = 1;
            order = ByteOrder.nativeOrder();
        } else {
            throw new IllegalArgumentException("buffers of this kind cannot be saved");
        }
        if (!buffer.isDirect() || buffer.isReadOnly() || order != ByteOrder.nativeOrder()) {
            throw new IllegalArgumentException(
                    name + " has to be a direct buffer in native byte order that can be written to");
        }
        for (int i = 0; strides != null && i < strides.length; i++) {
            strides[i] = Math.multiplyExact(strides[i], (long) size);
        }
        checked(protect(opened(), name, buffer, type, extents, strides, layout.ordinal()));
        kept.put(name, buffer);
    }

    /**
     * Names a single number, a buffer of one element.
     *
     * @param name its name
     * @param buffer the buffer
     */
    public void protectScalar(String name, Buffer buffer) {
        if (buffer.capacity() != 1) {
            throw new IllegalArgumentException(name + " is no single number");
        }
        keep(name, buffer, new long[0], null, Order.C);
    }

    /**
     * Forgets a buffer.
     *
     * @param name its name
     */
    public void unprotect(String name) {
        checked(unprotect(opened(), name));
        kept.remove(name);
    }

    /**
     * What generations written from now on remember.
     *
     * @param key a key
     * @param value its value
     */
    public void setAttribute(String key, String value) {
        checked(setAttribute(opened(), key, value));
    }

    /**
     * Writes all protected buffers. They are on disk then.
     *
     * @return the number of the generation
     */
    public long write() {
        return checked(write(opened()));
    }

    /** Gets the memory of copies beforehand, so that the first {@link #writeBegin()} is as short as the others. */
    public void prepare() {
        checked(prepare(opened()));
    }

    /** Copies all protected buffers, and writes the copy while the program goes on. */
    public void writeBegin() {
        checked(writeBegin(opened()));
    }

    /**
     * Waits for the end of what was begun.
     *
     * @return its number, or 0 where nothing was
     */
    public long await() {
        return checked(await(opened()));
    }

    /**
     * Fills all protected buffers from the newest sound generation.
     *
     * @return its number, or 0 where there is none yet
     */
    public long restore() {
        return restore(0);
    }

    /**
     * The same from one generation.
     *
     * @param generation the generation
     * @return its number
     */
    public long restore(long generation) {
        return checked(restore(opened(), generation));
    }

    /**
     * Bytes done and in all, of a background write or of the last one.
     *
     * @return two numbers
     */
    public long[] progress() {
        return checked(progress(opened()));
    }

    /**
     * All generations, the oldest first.
     *
     * @return the generations
     */
    public List<Generation> generations() {
        return described(generations(opened(), null, null));
    }

    /**
     * Generations that remember a value under a key.
     *
     * @param key the key
     * @param value the value
     * @return the generations
     */
    public List<Generation> find(String key, String value) {
        return described(generations(opened(), key, value));
    }

    private static List<Generation> described(long[] numbers) {
        long[] found = checked(numbers);
        List<Generation> all = new ArrayList<>();
        for (int at = 0; at < found.length; at += 8) {
            all.add(new Generation(
                    found[at], found[at + 1], found[at + 2], found[at + 3],
                    Generation.State.values()[(int) found[at + 4]], (int) found[at + 5], (int) found[at + 6],
                    (int) found[at + 7]));
        }
        return all;
    }

    /**
     * Reads bytes of a variable of any rank, in this machine's byte order.
     *
     * @param generation the generation
     * @param rank the rank
     * @param name name of the variable
     * @param offset first byte
     * @param length how many
     * @return the bytes
     */
    public byte[] read(long generation, int rank, String name, long offset, int length) {
        byte[] bytes = new byte[length];
        checked(read(opened(), generation, rank, name, offset, bytes));
        return bytes;
    }

    /**
     * What a generation remembers under a key.
     *
     * @param generation the generation
     * @param key the key
     * @return the value
     */
    public String attribute(long generation, String key) {
        return checked(attribute(opened(), generation, key));
    }

    /**
     * Changes what a generation remembers.
     *
     * @param generation the generation
     * @param key the key
     * @param value the value
     */
    public void update(long generation, String key, String value) {
        checked(update(opened(), generation, key, value, 0));
    }

    /**
     * Changes how long a generation is kept.
     *
     * @param generation the generation
     * @param seconds for which it is kept, from when it was written on
     */
    public void update(long generation, long seconds) {
        checked(update(opened(), generation, null, null, seconds));
    }

    /**
     * Removes a generation that no other one needs.
     *
     * @param generation the generation
     */
    public void free(long generation) {
        checked(free(opened(), generation));
    }

    /** Removes all generations, and what is known of them. */
    public void forget() {
        checked(forget(opened()));
    }

    /**
     * Compares every hash of a generation.
     *
     * @param generation the generation
     */
    public void validate(long generation) {
        checked(validate(opened(), generation));
    }

    /**
     * Copies a complete generation below another base directory.
     *
     * @param generation the generation
     * @param base the other base directory
     */
    public void transfer(long generation, String base) {
        checked(transfer(opened(), generation, base));
    }

    /**
     * Where to write a file that is to belong to the next generation.
     *
     * @param name its name
     * @return where
     */
    public Path route(String name) {
        return Path.of(checked(route(opened(), name)));
    }

    /**
     * Where such a file of a generation is, for reading.
     *
     * @param generation the generation
     * @param name its name
     * @return where
     */
    public Path file(long generation, String name) {
        return Path.of(checked(file(opened(), generation, name)));
    }

    /** Waits for a background write, and closes. Closing twice does nothing. */
    @Override
    public void close() {
        long closing = app;
        app = 0;
        if (closing != 0) {
            int code = close(closing);
            kept.clear();
            checked(code);
        }
    }

    private long opened() {
        if (app == 0) {
            throw new IllegalStateException("the checkpoint is closed");
        }
        return app;
    }

    private static native long open(
            String base, String name, int rank, int ranks, int keep, long lifetime, String sequence, String session);

    private static native int close(long app);

    private static native int protect(
            long app, String name, Buffer buffer, int type, long[] shape, long[] strides, int order);

    private static native int unprotect(long app, String name);

    private static native int setAttribute(long app, String key, String value);

    private static native long write(long app);

    private static native int prepare(long app);

    private static native int writeBegin(long app);

    private static native long await(long app);

    private static native long restore(long app, long generation);

    private static native long[] progress(long app);

    private static native long[] generations(long app, String key, String value);

    private static native int read(long app, long generation, int rank, String name, long offset, byte[] bytes);

    private static native String route(long app, String name);

    private static native String file(long app, long generation, String name);

    private static native int forget(long app);

    private static native String attribute(long app, long generation, String key);

    private static native int update(long app, long generation, String key, String value, long seconds);

    private static native int free(long app, long generation);

    private static native int validate(long app, long generation);

    private static native int transfer(long app, long generation, String base);
}
