package org.gridcpr;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;
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
        String library = System.getProperty("gridcpr.library");
        if (library == null) {
            System.loadLibrary("gridcpr_java");
        } else {
            System.load(library);
        }
    }

    /** How a checkpoint is opened; 0 and null leave things as the environment says. */
    public static final class Options {
        private int rank;
        private int ranks = 1;
        private int keep;
        private long lifetime;
        private String sequence;
        private String session;

        /** Which part is ours, from 0, and how many there are. */
        public Options rank(int rank, int ranks) {
            this.rank = rank;
            this.ranks = ranks;
            return this;
        }

        /** How many complete generations are kept. */
        public Options keep(int generations) {
            this.keep = generations;
            return this;
        }

        /** Seconds for which a generation is kept. */
        public Options lifetime(long seconds) {
            this.lifetime = seconds;
            return this;
        }

        /** F: full; I: what changed since the last F; i: since the last one. In turn. */
        public Options sequence(String sequence) {
            this.sequence = sequence;
            return this;
        }

        /** The same for all ranks of one run, another in the next. */
        public Options session(String session) {
            this.session = session;
            return this;
        }
    }

    private long app;
    // What is protected must not be collected.
    private final Map<String, Buffer> kept = new HashMap<>();

    /** Opens a checkpoint below a base directory. */
    public Checkpoint(String base, String name) {
        this(base, name, new Options());
    }

    /** The same with options. */
    public Checkpoint(String base, String name, Options options) {
        app = open(
                base, name, options.rank, options.ranks, options.keep, options.lifetime, options.sequence,
                options.session);
        if (app == 0) {
            throw new GridCprException(errorCode(), error());
        }
    }

    /** A buffer of the kind that can be protected. */
    public static DoubleBuffer doubles(int length) {
        return bytes(Math.multiplyExact(length, Double.BYTES)).asDoubleBuffer();
    }

    /** A buffer of the kind that can be protected. */
    public static LongBuffer longs(int length) {
        return bytes(Math.multiplyExact(length, Long.BYTES)).asLongBuffer();
    }

    /** A buffer of the kind that can be protected. */
    public static IntBuffer ints(int length) {
        return bytes(Math.multiplyExact(length, Integer.BYTES)).asIntBuffer();
    }

    /** A buffer of the kind that can be protected. */
    public static ByteBuffer bytes(int length) {
        return ByteBuffer.allocateDirect(length).order(ByteOrder.nativeOrder());
    }

    /**
     * Names a buffer.
     *
     * @param shape elements along each dimension, the last of which runs fastest; one dimension unless given
     */
    public void protect(String name, Buffer buffer, long... shape) {
        int type;
        ByteOrder order;
        if (buffer instanceof DoubleBuffer numbers) {
            type = FLOAT64;
            order = numbers.order();
        } else if (buffer instanceof FloatBuffer numbers) {
            type = FLOAT32;
            order = numbers.order();
        } else if (buffer instanceof LongBuffer numbers) {
            type = INT64;
            order = numbers.order();
        } else if (buffer instanceof IntBuffer numbers) {
            type = INT32;
            order = numbers.order();
        } else if (buffer instanceof ShortBuffer numbers) {
            type = INT16;
            order = numbers.order();
        } else if (buffer instanceof ByteBuffer) {
            type = BYTES;
            order = ByteOrder.nativeOrder();
        } else {
            throw new IllegalArgumentException("buffers of this kind cannot be saved");
        }
        if (!buffer.isDirect() || buffer.isReadOnly() || order != ByteOrder.nativeOrder()) {
            throw new IllegalArgumentException(
                    name + " has to be a direct buffer in native byte order that can be written to");
        }
        long[] extents = shape.length == 0 ? new long[] {buffer.capacity()} : shape.clone();
        long elements = 1;
        for (long extent : extents) {
            elements = Math.multiplyExact(elements, extent);
        }
        if (elements != buffer.capacity()) {
            throw new IllegalArgumentException(name + " has " + buffer.capacity() + " elements and not " + elements);
        }
        checked(protect(opened(), name, buffer, type, extents));
        kept.put(name, buffer);
    }

    /** Forgets a buffer. */
    public void unprotect(String name) {
        checked(unprotect(opened(), name));
        kept.remove(name);
    }

    /** What generations written from now on remember. */
    public void setAttribute(String key, String value) {
        checked(setAttribute(opened(), key, value));
    }

    /** Writes all protected buffers; gives the number of the generation. It is on disk then. */
    public long write() {
        return checked(write(opened()));
    }

    /** Copies all protected buffers, and writes the copy while the program goes on. */
    public void writeBegin() {
        checked(writeBegin(opened()));
    }

    /** Waits for the end of what was begun; gives its number, or 0 where nothing was. */
    public long await() {
        return checked(await(opened()));
    }

    /** Fills all protected buffers from the newest sound generation; gives its number, or 0 where there is none yet. */
    public long restore() {
        return restore(0);
    }

    /** The same from one generation. */
    public long restore(long generation) {
        return checked(restore(opened(), generation));
    }

    /** All generations, the oldest first. */
    public List<Generation> generations() {
        long[] found = generations(opened());
        if (found == null) {
            throw new GridCprException(errorCode(), error());
        }
        List<Generation> all = new ArrayList<>();
        for (int at = 0; at < found.length; at += 8) {
            all.add(new Generation(
                    found[at], found[at + 1], found[at + 2], found[at + 3],
                    Generation.State.values()[(int) found[at + 4]], (int) found[at + 5], (int) found[at + 6],
                    (int) found[at + 7]));
        }
        return all;
    }

    /** What a generation remembers under a key. */
    public String attribute(long generation, String key) {
        String value = attribute(opened(), generation, key);
        if (value == null) {
            throw new GridCprException(errorCode(), error());
        }
        return value;
    }

    /** Changes what a generation remembers. */
    public void update(long generation, String key, String value) {
        checked(update(opened(), generation, key, value));
    }

    /** Removes a generation that no other one needs. */
    public void free(long generation) {
        checked(free(opened(), generation));
    }

    /** Compares every hash of a generation. */
    public void validate(long generation) {
        checked(validate(opened(), generation));
    }

    /** Copies a complete generation below another base directory. */
    public void transfer(long generation, String base) {
        checked(transfer(opened(), generation, base));
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

    private static long checked(long result) {
        if (result < 0) {
            throw new GridCprException((int) result, error());
        }
        return result;
    }

    private static native String error();

    private static native int errorCode();

    private static native long open(
            String base, String name, int rank, int ranks, int keep, long lifetime, String sequence, String session);

    private static native int close(long app);

    private static native int protect(long app, String name, Buffer buffer, int type, long[] shape);

    private static native int unprotect(long app, String name);

    private static native int setAttribute(long app, String key, String value);

    private static native long write(long app);

    private static native int writeBegin(long app);

    private static native long await(long app);

    private static native long restore(long app, long generation);

    private static native long[] generations(long app);

    private static native String attribute(long app, long generation, String key);

    private static native int update(long app, long generation, String key, String value);

    private static native int free(long app, long generation);

    private static native int validate(long app, long generation);

    private static native int transfer(long app, long generation, String base);
}
