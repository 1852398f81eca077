import java.nio.ByteOrder;
import java.nio.LongBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.locks.LockSupport;

/** A Java victim of cpr-bench. Usage: java Victim PAGE BYTES. The words of PAGE are those of src/heartbeat.rs. */
public final class Victim {
    private static final int READY = 0, BEATS = 1, LAST = 2, GAP = 3, WATCH = 4, WATCHING = 5, ORDER = 6, DONE = 7, WRONG = 8;
    private static final int END = 1;
    private static final long INTERVAL_NS = 100_000;
    /** Small enough for the collector to keep several together. */
    private static final int ARRAY_BYTES = 1 << 18;

    public static void main(String[] arguments) throws Exception {
        LongBuffer page;
        try (var file = FileChannel.open(Path.of(arguments[0]), StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            page = file.map(FileChannel.MapMode.READ_WRITE, 0, 4096).order(ByteOrder.nativeOrder()).asLongBuffer();
        }
        var random = new Random(2002);
        var heap = new byte[(int) (Long.parseLong(arguments[1]) / ARRAY_BYTES)][ARRAY_BYTES];
        var sums = new int[heap.length];
        for (int i = 0; i < heap.length; i++) {
            random.nextBytes(heap[i]);
            sums[i] = Arrays.hashCode(heap[i]);
        }
        page.put(READY, 1);
        long last = 0, order = 0;
        while (true) {
            long now = System.nanoTime();
            long watch = page.get(WATCH);
            if (watch == page.get(WATCHING)) {
                page.put(GAP, Math.max(page.get(GAP), now - last));
            } else {
                page.put(GAP, 0);
                page.put(WATCHING, watch);
            }
            last = now;
            page.put(LAST, now);
            page.put(BEATS, page.get(BEATS) + 1);
            if (page.get(ORDER) != order) {
                order = page.get(ORDER);
                if ((order & 255) == END) {
                    Runtime.getRuntime().halt(0);
                }
                for (int i = 0; i < heap.length; i++) {
                    page.put(WRONG, page.get(WRONG) + (Arrays.hashCode(heap[i]) == sums[i] ? 0 : 1));
                }
                page.put(DONE, page.get(DONE) + 1);
            }
            LockSupport.parkNanos(INTERVAL_NS);
        }
    }
}
