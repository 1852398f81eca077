import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Worker threads that fill the heap and leave garbage behind. Usage: java Workers.java ROUNDS OUTPUT */
public final class Workers {
    private static final int WORKERS = 2;

    /** One worker's state, carried from round to round. */
    private static final class Worker implements Callable<Long> {
        private final TreeMap<Integer, String> live = new TreeMap<>();
        private final List<byte[]> ballast = new ArrayList<>();
        private long seed;

        Worker(int number) {
            seed = number + 1;
            for (int i = 0; i < 24; i++) {
                ballast.add(new byte[1 << 20]);
            }
        }

        @Override
        public Long call() {
            long sum = 0;
            for (int i = 0; i < 12_000; i++) {
                seed = (seed * 1103515245L + 12345L) & 0x7fffffffL;
                int key = (int) (seed % 20_000);
                String text = Long.toHexString(seed) + ":" + key;
                String old = live.put(key, text);
                byte[] block = ballast.get(key % ballast.size());
                block[(int) (seed % block.length)] += (byte) text.hashCode();
                sum += text.hashCode() + (old == null ? 0 : old.length());
                if (i % 6_000 == 0) {
                    ballast.set(key % ballast.size(), block.clone());
                }
            }
            for (var entry : live.entrySet()) {
                sum = sum * 31 + entry.getKey() + entry.getValue().hashCode();
            }
            return sum;
        }
    }

    public static void main(String[] arguments) throws Exception {
        int rounds = Integer.parseInt(arguments[0]);
        List<Worker> workers = new ArrayList<>();
        for (int i = 0; i < WORKERS; i++) {
            workers.add(new Worker(i));
        }
        ExecutorService pool = Executors.newFixedThreadPool(WORKERS);
        try (PrintWriter out = new PrintWriter(Files.newBufferedWriter(Path.of(arguments[1])))) {
            for (int round = 1; round <= rounds; round++) {
                StringBuilder line = new StringBuilder().append(round);
                for (Future<Long> sum : pool.invokeAll(workers)) {
                    line.append(' ').append(sum.get());
                }
                out.println(line);
                out.flush();
            }
        } finally {
            pool.shutdown();
        }
    }
}
